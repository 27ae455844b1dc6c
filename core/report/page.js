"use strict";
const tip = document.getElementById("tip");
const text = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
};
for (const figure of document.querySelectorAll("[data-chart]")) {
  const svg = figure.querySelector("svg");
  const data = JSON.parse(figure.dataset.chart);
  const [left, right, top, bottom] = data.box;
  const rule = document.createElementNS(svg.namespaceURI, "path");
  rule.setAttribute("class", "rule");
  svg.appendChild(rule);
  const hide = () => { tip.hidden = true; rule.removeAttribute("d"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    if (x < left - 6 || x > right + 6) { hide(); return; }
    const wanted = data.x[0] + (x - left) / (right - left) * (data.x[1] - data.x[0]);
    let step = null;
    for (const line of data.s) {
      const found = line.x[nearest(line.x, wanted)];
      if (step === null || Math.abs(found - wanted) < Math.abs(step - wanted)) step = found;
    }
    tip.textContent = "";
    const head = document.createElement("p");
    head.textContent = "step " + step;
    tip.appendChild(head);
    for (const line of data.s) {
      const i = nearest(line.x, step);
      const row = document.createElement("div");
      row.className = line.k;
      const name = document.createElement("span");
      name.textContent = line.n + (line.x[i] === step ? "" : " (step " + line.x[i] + ")");
      const value = document.createElement("b");
      value.textContent = text(line.y[i]);
      row.append(name, value);
      if (line.m && line.m[i] !== null) {
        const mean = document.createElement("small");
        mean.textContent = "mean " + text(line.m[i]);
        row.append(mean);
      }
      tip.appendChild(row);
    }
    const at = left + (step - data.x[0]) / (data.x[1] - data.x[0]) * (right - left);
    rule.setAttribute("d", "M" + at + " " + top + "V" + bottom);
    tip.hidden = false;
    const width = tip.offsetWidth;
    const beside = event.clientX + 16 + width > window.innerWidth ? event.clientX - width - 16 : event.clientX + 16;
    tip.style.left = Math.max(8, beside) + "px";
    tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
  });
}
window.addEventListener("beforeprint", () => {
  for (const block of document.querySelectorAll("details")) block.open = true;
});
