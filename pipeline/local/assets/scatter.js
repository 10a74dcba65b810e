"use strict";
// Points of one or more embeddings: choose one, choose what colors it, drag, zoom, point at a descriptor.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("canvas");
  const tip = document.getElementById("tip");
  const thumb = document.getElementById("thumb");
  const words = document.getElementById("words");
  const legend = document.getElementById("legend");
  const viewList = document.getElementById("view");
  const colorList = document.getElementById("color");
  const paint = canvas.getContext("2d");
  const pictures = data.images.map((image) => {
    const picture = new Image();
    picture.src = image.thumbnail;
    return picture;
  });
  let view = data.views[0];
  let coloring = view.colorings[0];
  let hidden = new Set();
  let scale = 1, left = 0, top = 0;
  let hovered = -1;

  function fill(list, names) {
    list.replaceChildren(...names.map((name, place) => new Option(name, String(place))));
  }

  function fit() {
    const box = canvas.getBoundingClientRect();
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * density);
    canvas.height = Math.round(box.height * density);
    const low = [Math.min(...view.x), Math.min(...view.y)];
    const high = [Math.max(...view.x), Math.max(...view.y)];
    const span = [high[0] - low[0] || 1, high[1] - low[1] || 1];
    scale = 0.92 * Math.min(canvas.width / span[0], canvas.height / span[1]);
    left = canvas.width / 2 - scale * (low[0] + high[0]) / 2;
    top = canvas.height / 2 - scale * (low[1] + high[1]) / 2;
  }

  function radius() {
    const count = view.x.length;
    return (window.devicePixelRatio || 1) * (count < 800 ? 4 : count < 4000 ? 3 : 2);
  }

  function draw() {
    paint.fillStyle = "#fff";
    paint.fillRect(0, 0, canvas.width, canvas.height);
    const size = radius();
    paint.globalAlpha = 0.8;
    for (let point = 0; point < view.x.length; point++) {
      const label = coloring.labels[point];
      if (hidden.has(label)) continue;
      paint.fillStyle = coloring.colors[label];
      paint.beginPath();
      paint.arc(left + scale * view.x[point], top + scale * view.y[point], size, 0, 2 * Math.PI);
      paint.fill();
    }
    paint.globalAlpha = 1;
    if (hovered >= 0) {
      paint.lineWidth = size / 2;
      paint.strokeStyle = "#000";
      paint.beginPath();
      paint.arc(left + scale * view.x[hovered], top + scale * view.y[hovered], 2.2 * size, 0, 2 * Math.PI);
      paint.stroke();
    }
  }

  function makeLegend() {
    const counts = new Map();
    for (const label of coloring.labels) counts.set(label, (counts.get(label) || 0) + 1);
    const entries = [...counts.keys()].sort((a, b) => a - b).map((label) => {
      const button = document.createElement("button");
      button.className = "legend";
      const square = document.createElement("i");
      square.style.background = coloring.colors[label];
      button.append(square, `${coloring.names[label]} (${counts.get(label)})`);
      button.addEventListener("click", () => {
        hidden.has(label) ? hidden.delete(label) : hidden.add(label);
        button.classList.toggle("off", hidden.has(label));
        draw();
      });
      return button;
    });
    legend.replaceChildren(...entries);
  }

  function choose(viewPlace, colorName) {
    view = data.views[viewPlace];
    const place = Math.max(0, view.colorings.findIndex((one) => one.name === colorName));
    coloring = view.colorings[place];
    fill(colorList, view.colorings.map((one) => one.name));
    colorList.value = String(place);
    hidden = new Set();
    hovered = -1;
    makeLegend();
  }

  function nearest(x, y) {
    let best = -1, distance = (10 * (window.devicePixelRatio || 1)) ** 2;
    for (let point = 0; point < view.x.length; point++) {
      if (hidden.has(coloring.labels[point])) continue;
      const dx = left + scale * view.x[point] - x, dy = top + scale * view.y[point] - y;
      if (dx * dx + dy * dy < distance) { best = point; distance = dx * dx + dy * dy; }
    }
    return best;
  }

  function showTip(box) {
    if (hovered < 0) { tip.style.display = "none"; return; }
    const number = view.image[hovered], image = data.images[number], picture = pictures[number];
    thumb.width = picture.naturalWidth; thumb.height = picture.naturalHeight;
    const pen = thumb.getContext("2d");
    pen.drawImage(picture, 0, 0);
    const [rows, columns] = image.grid;
    const row = Math.floor(view.cell[hovered] / columns), column = view.cell[hovered] % columns;
    const width = thumb.width / columns, height = thumb.height / rows;
    pen.lineWidth = 2; pen.strokeStyle = "#fff";
    pen.strokeRect(column * width - 3, row * height - 3, width + 6, height + 6);
    pen.strokeStyle = "#f00";
    pen.strokeRect(column * width - 1, row * height - 1, width + 2, height + 2);
    words.textContent = `${image.name}: row ${row}, column ${column} (${coloring.names[coloring.labels[hovered]]})`;
    const density = window.devicePixelRatio || 1;
    const x = (left + scale * view.x[hovered]) / density, y = (top + scale * view.y[hovered]) / density;
    tip.style.display = "block";
    tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, box.height - tip.offsetHeight - 4))}px`;
  }

  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("pointerleave", () => { hovered = -1; draw(); tip.style.display = "none"; });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), density = window.devicePixelRatio || 1;
    if (dragged) {
      left += (event.clientX - dragged[0]) * density;
      top += (event.clientY - dragged[1]) * density;
      dragged = [event.clientX, event.clientY];
      hovered = -1;
    } else {
      hovered = nearest((event.clientX - box.left) * density, (event.clientY - box.top) * density);
    }
    draw();
    showTip(box);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), density = window.devicePixelRatio || 1;
    const x = (event.clientX - box.left) * density, y = (event.clientY - box.top) * density;
    const factor = Math.exp(-event.deltaY / 400);
    left = x - factor * (x - left);
    top = y - factor * (y - top);
    scale *= factor;
    draw();
  }, { passive: false });
  viewList.addEventListener("change", () => { choose(Number(viewList.value), coloring.name); fit(); draw(); });
  colorList.addEventListener("change", () => {
    choose(Number(viewList.value), view.colorings[Number(colorList.value)].name);
    draw();
  });
  document.getElementById("reset").addEventListener("click", () => { fit(); draw(); });
  window.addEventListener("resize", () => { fit(); draw(); });
  fill(viewList, data.views.map((one) => one.name));
  choose(0, "");
  fit();
  draw();
})();
