"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const video = document.getElementById("video");
  const canvas = document.getElementById("overlay");
  const toggles = Array.from(document.querySelectorAll(".toggle"));
  const small = document.createElement("canvas");
  const chunks = new Map();
  let drawn = "";

  // Going to a moment. A quarter of a frame further, so that rounding never shows the frame before.
  function jump(seconds) {
    if (!video) return;
    video.pause();
    video.currentTime = seconds + data.frame_seconds / 4;
    video.parentElement.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
  document.querySelectorAll(".jump").forEach((button) => {
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      document.querySelectorAll(".current").forEach((other) => other.classList.remove("current"));
      button.classList.add("current");
      jump(Number(button.dataset.t));
    });
  });
  document.querySelectorAll(".chart").forEach((chart) => {
    chart.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect();
      jump(Math.max(0, ((event.clientX - box.left) / box.width) * data.duration - data.frame_seconds / 2));
    });
    const head = document.createElement("i");
    head.className = "head";
    chart.append(head);
  });
  function moveHeads() {
    const share = Math.min(1, video.currentTime / data.duration);
    document.querySelectorAll(".head").forEach((head) => (head.style.left = 100 * share + "%"));
  }

  // The masks: chunks of XOR-coded index masks, inflated when they are first needed.
  async function masksOf(chunk) {
    if (chunks.has(chunk)) return chunks.get(chunk);
    const packed = data.masks;
    const bytes = Uint8Array.from(atob(packed.chunks[chunk]), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const values = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = packed.width * packed.height;
    for (let n = size; n < values.length; n++) values[n] ^= values[n - size];
    chunks.set(chunk, values);
    return values;
  }
  function maskNumber(seconds) {
    const times = data.masks.seconds;
    let low = 0;
    let high = times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (times[middle] <= seconds + data.frame_seconds / 8) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  function rgb(id) {
    const value = parseInt((data.colors[id] || "#ffffff").slice(1), 16);
    return [value >> 16, (value >> 8) & 255, value & 255];
  }
  async function draw() {
    moveHeads();
    if (!data.masks || !canvas) return;
    const shown = toggles.filter((toggle) => toggle.checked).map((toggle) => Number(toggle.value));
    const number = maskNumber(video.currentTime);
    const key = number + ":" + shown.join(",");
    if (key === drawn) return;
    drawn = key;
    const { width, height, chunk_masks: per } = data.masks;
    const context = canvas.getContext("2d");
    canvas.width = Math.min(1280, width * 4);
    canvas.height = Math.round((canvas.width * height) / width);
    if (!shown.length) return;
    const values = await masksOf(Math.floor(number / per));
    if (key !== drawn) return;
    const start = (number % per) * width * height;
    small.width = width;
    small.height = height;
    const picture = new ImageData(width, height);
    const colors = new Map(shown.map((id) => [id, rgb(id)]));
    for (let n = 0; n < width * height; n++) {
      const color = colors.get(values[start + n]);
      picture.data.set(color ? [color[0], color[1], color[2], 110] : [0, 0, 0, 130], 4 * n);
    }
    small.getContext("2d").putImageData(picture, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
  if (video) {
    toggles.forEach((toggle) => toggle.addEventListener("change", draw));
    const setAll = (on) => {
      toggles.forEach((toggle) => (toggle.checked = on));
      draw();
    };
    const all = document.getElementById("all");
    if (all) {
      all.addEventListener("click", () => setAll(true));
      document.getElementById("none").addEventListener("click", () => setAll(false));
    }
    for (const name of ["seeked", "timeupdate", "loadeddata"]) video.addEventListener(name, draw);
    const follow = () => {
      draw();
      if (!video.paused) requestAnimationFrame(follow);
    };
    video.addEventListener("play", follow);
    const asked = /^#t=([0-9.]+)$/.exec(location.hash);
    if (asked) video.addEventListener("loadedmetadata", () => jump(Number(asked[1])), { once: true });
  }
})();
