"use strict";
(() => {
  const each = (selector, act, root = document) => root.querySelectorAll(selector).forEach(act);
  const hiddenRuns = new Set();

  // -- curves: values at the pointer come from the table below the drawing ------------------------------------------

  each(".chart", (figure) => {
    const svg = figure.querySelector("svg[data-first]");
    const cursor = svg.querySelector(".cursor");
    const output = figure.querySelector("output");
    const rows = [...figure.querySelectorAll("tbody tr")];
    const runs = [...figure.querySelectorAll(".key [data-run]")].map((key) => key.dataset.run);
    const names = [...figure.querySelectorAll("thead th")].slice(1).map((head) => head.textContent);
    const steps = rows.map((row) => Number(row.cells[0].textContent));
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const { first, last, left, right } = svg.dataset;
    const inner = width - left - right;
    const place = (step) => Number(left) + inner * (last > first * 1 ? (step - first) / (last - first) : 0.5);
    let at = -1;

    const show = (i) => {
      at = Math.min(Math.max(i, 0), rows.length - 1);
      const texts = [...rows[at].cells].slice(1).map((cell) => cell.textContent);
      const told = names.map((name, k) => (texts[k] && !hiddenRuns.has(runs[k]) ? `${name} ${texts[k]}` : ""));
      cursor.setAttribute("d", `M${place(steps[at])} 8V${height - 42}`);
      output.textContent = `step ${steps[at]}: ${told.filter(Boolean).join(", ") || "nothing"}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      let nearest = 0;
      steps.forEach((step, i) => {
        if (Math.abs(place(step) - x) < Math.abs(place(steps[nearest]) - x)) nearest = i;
      });
      show(nearest);
    });
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(at < 0 ? rows.length - 1 : moves[event.key]);
    });
  });

  each("[data-show-run]", (box) => {
    box.addEventListener("change", () => {
      const run = box.dataset.showRun;
      if (box.checked) hiddenRuns.delete(run);
      else hiddenRuns.add(run);
      each(`.chart [data-run="${run}"]`, (part) => part.classList.toggle("off", !box.checked));
    });
  });

  // -- tables of classes --------------------------------------------------------------------------------------------

  each(".sort", (button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = button.closest("table").tBodies[0];
      const key = button.dataset.key;
      const value = (row) => Number(key === "index" ? row.dataset.index : row.dataset.values.split(" ")[key]);
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      each("th[aria-sort]", (other) => other.removeAttribute("aria-sort"), button.closest("tr"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => sign * (value(a) - value(b))));
    });
  });

  // -- a confusion matrix of many classes ---------------------------------------------------------------------------

  const rgb = (name) => {
    const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  };

  each("script[data-matrix]", (script) => {
    const { names, totals, true: rows, predicted: columns, count } = JSON.parse(script.textContent);
    const id = script.dataset.matrix;
    const canvas = document.getElementById(id);
    const output = document.getElementById(`${id}-cell`);
    const number = names.length;
    const side = Math.max(1, Math.floor(640 / number));
    const counts = new Map(count.map((value, i) => [rows[i] * number + columns[i], value]));
    const right = names.map((_, i) => (totals[i] ? (counts.get(i * number + i) || 0) / totals[i] : 1));
    let order = names.map((_, i) => i);
    let cell = null;
    canvas.width = canvas.height = side * number;

    const draw = () => {
      const context = canvas.getContext("2d");
      const [from, to] = [rgb("--paper"), rgb("--heat")];
      const places = [];
      order.forEach((index, place) => (places[index] = place));
      context.fillStyle = `rgb(${from})`;
      context.fillRect(0, 0, canvas.width, canvas.height);
      count.forEach((value, i) => {
        const share = value / totals[rows[i]];
        const part = Math.min(1, Math.max(0.06, 1 + Math.log10(share) / 4));
        context.fillStyle = `rgb(${from.map((low, k) => Math.round(low + part * (to[k] - low)))})`;
        context.fillRect(places[columns[i]] * side, places[rows[i]] * side, side, side);
      });
      if (!cell) return;
      context.strokeStyle = `rgb(${rgb("--bad")})`;
      context.lineWidth = 2;
      context.strokeRect(cell[1] * side - 1, cell[0] * side - 1, side + 2, side + 2);
    };
    const show = (row, column) => {
      cell = [row, column].map((place) => Math.min(Math.max(place, 0), number - 1));
      const [i, j] = cell.map((place) => order[place]);
      const value = counts.get(i * number + j) || 0;
      const share = totals[i] ? ((100 * value) / totals[i]).toFixed(2) : "0";
      output.textContent = `${names[i]} taken for ${names[j]}: ${share} % of its ${totals[i]} (${value})`;
      draw();
    };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (offset, length) => Math.floor((offset / length) * number);
      show(at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width));
    });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const [down, across] = cell ? moves[event.key] : [0, 0];
      show((cell ? cell[0] : 0) + down, (cell ? cell[1] : 0) + across);
    });
    document.querySelector(`[data-order="${id}"]`).addEventListener("change", (event) => {
      const by = { index: (i) => i, count: (i) => -totals[i], wrong: (i) => right[i] }[event.target.value];
      order = names.map((_, i) => i).sort((a, b) => by(a) - by(b));
      cell = null;
      draw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  });

  // -- pictures: a PNG holds the prediction and the label of each pixel, which are coloured here ---------------------

  const UNLABELLED = 4095;
  const colors = new Map();
  const shown = new Set();
  const pictures = [];
  each(".toggle", (toggle) => {
    const color = toggle.dataset.color;
    colors.set(Number(toggle.dataset.class), [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
    shown.add(Number(toggle.dataset.class));
  });

  const pixels = (image, width, height) => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };

  const paint = ({ canvas, photo, index }, view, strength) => {
    const context = canvas.getContext("2d");
    const drawn = context.createImageData(canvas.width, canvas.height);
    const data = drawn.data;
    for (let i = 0; view !== "photo" && i < data.length; i += 4) {
      const predicted = index[i] + ((index[i + 2] >> 4) << 8);
      const label = index[i + 1] + ((index[i + 2] & 15) << 8);
      let color = null;
      let alpha = strength;
      if (view === "errors") {
        const grey = 0.6 * ((photo[i] + photo[i + 1] + photo[i + 2]) / 3);
        const wrong = predicted !== label && (shown.has(predicted) || shown.has(label));
        color = label === UNLABELLED ? [255, 255, 255] : wrong ? [230, 30, 30] : [grey, grey, grey];
        alpha = 255;
      } else {
        const found = view === "label" ? label : predicted;
        color = found === UNLABELLED ? [255, 255, 255] : shown.has(found) ? colors.get(found) : null;
      }
      if (!color) continue;
      data[i] = color[0];
      data[i + 1] = color[1];
      data[i + 2] = color[2];
      data[i + 3] = alpha;
    }
    context.putImageData(drawn, 0, 0);
  };

  const paintAll = () => {
    const view = document.querySelector("[name=view]:checked").value;
    const strength = Math.round(2.55 * document.getElementById("strength").value);
    pictures.forEach((picture) => paint(picture, view, strength));
  };
  const show = (toggle, on) => {
    toggle.setAttribute("aria-pressed", String(on));
    if (on) shown.add(Number(toggle.dataset.class));
    else shown.delete(Number(toggle.dataset.class));
  };
  each(".toggle", (toggle) => {
    toggle.addEventListener("click", () => {
      show(toggle, toggle.getAttribute("aria-pressed") !== "true");
      paintAll();
    });
  });
  each("[data-all]", (button) => {
    button.addEventListener("click", () => {
      each(".toggle", (toggle) => show(toggle, button.dataset.all === "true"));
      paintAll();
    });
  });
  each("[name=view], #strength", (control) => control.addEventListener("input", paintAll));

  const stacks = [...document.querySelectorAll(".stack")].filter((stack) => stack.querySelector("canvas"));
  const ready = stacks.map(async (stack) => {
    const [photo, index, canvas] = [".photo", ".index", "canvas"].map((part) => stack.querySelector(part));
    await Promise.all([photo.decode(), index.decode()]);
    const { width, height } = canvas;
    pictures.push({ canvas, photo: pixels(photo, width, height), index: pixels(index, width, height) });
  });
  Promise.allSettled(ready).then(() => {
    if (pictures.length) paintAll();
    document.documentElement.dataset.ready = "true";
  });
})();
