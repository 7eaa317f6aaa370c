"use strict";
// All that the page says stands in it already; this only opens, closes and recolours.
const root = document.documentElement;
const all = () => document.querySelectorAll("article details");
const on = (id, act) => document.getElementById(id)?.addEventListener("click", act);

on("open", () => all().forEach((each) => { each.open = true; }));
on("close", () => all().forEach((each) => { each.open = false; }));
on("theme", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});

// On paper nothing can be opened.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...all()].filter((each) => !each.open);
  closed.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

// Up and down go from line to line of a waterfall.
document.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !document.activeElement?.matches(".fall summary")) return;
  const lines = [...document.querySelectorAll(".fall summary")].filter((each) => each.checkVisibility());
  lines[lines.indexOf(document.activeElement) + step]?.focus();
  event.preventDefault();
});
