"""The local page on which masks are clicked; ``docs/prompts.md`` shows it."""
