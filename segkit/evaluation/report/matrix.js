// A confusion matrix: a square window on K x K cells, zoomed around the chosen cell.

class Matrix {
  constructor(figure, { names, confusion }) {
    Object.assign(this, { figure, names, counts: confusion, zoom: 1, left: 0, top: 0 });
    this.canvas = figure.querySelector("canvas");
    this.sums = confusion.map(row => row.reduce((a, b) => a + b, 0));
    this.share = (t, p) => (this.sums[t] ? this.counts[t][p] / this.sums[t] : 0);
    this.at = this.worst();
    const { canvas } = this, context = canvas.getContext("2d");
    context.font = "600 13px system-ui, sans-serif";
    this.longest = Math.max(...names.map(name => context.measureText(name).width)) + 12;
    for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, event => this.point(event));
    canvas.addEventListener("keydown", event => this.key(event));
    all(figure, "[data-zoom]").forEach(button => button.addEventListener("click", () =>
      this.scale({ in: 1.6, out: 1 / 1.6, all: 0 }[button.dataset.zoom])));
    new ResizeObserver(() => this.draw()).observe(figure);
    this.read();
  }
  worst() {
    let found = [0, 0], most = -1;
    this.counts.forEach((row, t) => row.forEach((count, p) => { if (t !== p && count > most) [most, found] = [count, [t, p]]; }));
    return found;
  }
  scale(factor) {
    this.zoom = clamp(this.zoom * factor, 1, Math.max(1, 48 / this.unit));
    this.follow(true);
  }
  key(event) {
    const step = ARROWS[event.key], factor = { "+": 1.6, "=": 1.6, "-": 1 / 1.6, 0: 0 }[event.key];
    if (event.ctrlKey || event.metaKey || !(step || factor !== undefined)) return;
    event.preventDefault();
    if (!step) { this.scale(factor); return; }
    this.choose(this.at[0] + step[1], this.at[1] + step[0]);
    this.follow(false);
  }
  point(event) {
    const x = event.offsetX - this.margin, y = event.offsetY - this.margin;
    if (event.buttons && event.type === "pointermove" && this.zoom > 1) {
      this.left -= event.movementX / this.cell;
      this.top -= event.movementY / this.cell;
      this.draw();
    } else if (x >= 0 && y >= 0) {
      this.choose(Math.floor(this.top + y / this.cell), Math.floor(this.left + x / this.cell));
      this.draw();
    }
  }
  choose(t, p) {
    const last = this.names.length - 1, next = [clamp(t, 0, last), clamp(p, 0, last)];
    if (String(next) === String(this.at)) return;
    this.at = next;
    this.read();
  }
  follow(centre) { // keeps the chosen cell in the window
    const seen = this.side / (this.unit * this.zoom), [t, p] = this.at;
    const near = (start, i) => (centre ? i + 0.5 - seen / 2 : clamp(start, i + 1 - seen, i));
    [this.left, this.top] = [near(this.left, p), near(this.top, t)];
    this.draw();
  }
  read() {
    const [t, p] = this.at, count = this.counts[t][p].toLocaleString("en");
    const how = this.sums[t] ? `${(100 * this.share(t, p)).toFixed(1)} % (${count} pixels)` : "no pixel of this class";
    this.figure.querySelector("output").textContent = `true ${this.names[t]} predicted as ${this.names[p]}: ${how}`;
  }
  draw() {
    const { canvas, names } = this, count = names.length, wide = this.figure.clientWidth, ratio = devicePixelRatio;
    if (!wide) return;
    this.margin = Math.min(this.longest, wide < 500 ? 84 : 128);
    const unit = Math.min(56, Math.min(wide - this.margin, 660) / count); // of a cell, at zoom 1
    this.unit = unit * ratio < 3 ? unit : Math.floor(unit * ratio) / ratio; // whole pixels, where little is lost
    this.side = this.unit * count;
    this.cell = this.unit * this.zoom;
    const room = count - this.side / this.cell;
    [this.left, this.top] = [clamp(this.left, 0, room), clamp(this.top, 0, room)];
    const size = Math.ceil(this.margin + this.side) + 1, context = canvas.getContext("2d");
    Object.assign(canvas, { width: size * ratio, height: size * ratio });
    Object.assign(canvas.style, { width: `${size}px`, height: `${size}px` });
    canvas.classList.toggle("zoomed", this.zoom > 1);
    context.scale(ratio, ratio);
    this.cells(context);
    this.labels(context);
  }
  cells(context) {
    const { margin, cell, side, left, top } = this, until = start => Math.min(this.names.length, Math.ceil(start + side / cell));
    const [blue, orange, absent, paper] = ["--blue", "--orange", "--absent", "--paper"].map(name => rgb(colour(name)));
    const gap = cell > 7 ? 1 : 0;
    context.save();
    context.beginPath();
    context.rect(margin, margin, side, side);
    context.clip();
    Object.assign(context, { textAlign: "center", textBaseline: "middle", font: `${Math.min(13, cell / 3)}px system-ui, sans-serif` });
    for (let t = Math.floor(top); t < until(top); t++) for (let p = Math.floor(left); p < until(left); p++) {
      const share = this.share(t, p), x = margin + (p - left) * cell, y = margin + (t - top) * cell;
      const strength = t === p ? share : share < 1e-3 ? 0 : share ** 0.4;
      const shade = this.sums[t] ? mix(paper, t === p ? blue : orange, strength) : absent;
      context.fillStyle = `rgb(${shade})`;
      context.fillRect(x, y, cell - gap, cell - gap);
      if (cell < 26 || share < 1e-3) continue;
      context.fillStyle = luminance(shade) > 0.18 ? "#111" : "#fff";
      context.fillText((100 * share).toFixed(share < 0.0995 ? 1 : 0), x + cell / 2, y + cell / 2);
    }
    Object.assign(context, { strokeStyle: colour("--rule"), lineWidth: 1 });
    context.strokeRect(margin + 0.5, margin + 0.5, side - 1, side - 1);
    Object.assign(context, { strokeStyle: colour("--ink"), lineWidth: 2 });
    context.strokeRect(margin + (this.at[1] - left) * cell, margin + (this.at[0] - top) * cell, cell, cell);
    context.restore();
  }
  labels(context) { // every name where there is room, else those of the chosen cell
    const { margin, cell, side, left, top, names } = this, [ink, quiet] = ["--ink", "--quiet"].map(colour);
    const write = (i, start, chosen) => {
      const place = margin + (i + 0.5 - start) * cell;
      if ((cell < 11 && !chosen) || place < margin || place > margin + side) return;
      let name = names[i];
      context.font = `${chosen ? "600 " : ""}${clamp(cell * 0.8, 11, 13)}px system-ui, sans-serif`;
      while (name.length > 2 && context.measureText(name).width > margin - 10) name = `${name.replace("\u2026", "").slice(0, -1)}\u2026`;
      context.fillStyle = chosen ? ink : quiet;
      context.fillText(name, 0, 0);
    };
    context.textBaseline = "middle";
    names.forEach((_, i) => [0, 1].forEach(axis => {
      context.save();
      context.textAlign = axis ? "left" : "right";
      if (axis) context.translate(margin + (i + 0.5 - left) * cell, margin - 6);
      else context.translate(margin - 6, margin + (i + 0.5 - top) * cell);
      context.rotate(axis * -Math.PI / 2);
      write(i, axis ? left : top, i === this.at[axis]);
      context.restore();
    }));
  }
}
