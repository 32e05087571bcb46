// Images: layers are drawn from maps of train ids when an article comes near, and dropped when it is far.

const NONE = 255; // ignored in a truth, no class in a prediction
const WRONG = [213, 94, 0], IGNORED = [58, 58, 58], UNSURE = [230, 159, 0], SURE = [11, 42, 74];
const TITLES = { image: "image", truth: "truth", labels: "prediction", errors: "errors", confidence: "confidence" };

async function pixels(index) {
  if (index === null) return null;
  const image = new Image();
  image.src = data.images[index];
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

class View {
  constructor(article, example, gallery) {
    Object.assign(this, { article, example, gallery, at: null, layers: {} });
    [this.width, this.height] = example.size;
    this.kinds = Object.keys(TITLES).filter(kind => (kind === "errors" ? example.truth !== null : example[kind] !== null));
    const name = article.querySelector("h4").textContent;
    this.panels = make("div", { className: "panels", tabIndex: 0, role: "application", ariaLabel: `Pixels of ${name}: arrow keys read them` });
    this.canvases = this.kinds.slice(0, 4).map(kind => {
      const canvas = this.canvas(kind);
      this.panels.append(make("div", {}, make("span", { textContent: TITLES[kind] }), canvas));
      return canvas;
    });
    this.output = make("output", { ariaLive: "polite" });
    article.append(this.panels, this.output);
    this.panels.addEventListener("keydown", event => this.key(event));
    if (this.kinds.length > 1) article.append(this.wipeBox());
  }
  canvas(kind) {
    const canvas = make("canvas", { width: 4, height: 3 });
    canvas.dataset.kind = kind;
    canvas.style.aspectRatio = `${this.width} / ${this.height}`;
    for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, event => this.point(canvas, event));
    return canvas;
  }
  wipeBox() {
    const choose = (word, first) => {
      const select = make("select", {}, ...this.kinds.map(kind => make("option", { value: kind, textContent: TITLES[kind], selected: kind === first })));
      select.addEventListener("input", () => this.draw());
      return [make("label", {}, `${word} `, select), select];
    };
    const [[left, a], [right, b]] = [choose("Left", this.kinds[0]), choose("Right", this.kinds.includes("labels") ? "labels" : this.kinds[1])];
    this.slider = make("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Wipe" });
    this.slider.addEventListener("input", () => this.draw());
    Object.assign(this, { a, b, wide: this.canvas("wipe") });
    this.wipe = make("details", { className: "wipe controls" }, make("summary", { textContent: "Wipe between two" }), make("div", {}, left, this.slider, right), this.wide);
    this.wipe.addEventListener("toggle", () => this.draw());
    return this.wipe;
  }
  async show() {
    this.loading ??= Promise.all(["image", "truth", "labels", "confidence"].map(async kind => { this[kind] = await pixels(this.example[kind]); }));
    await this.loading;
    this.draw();
  }
  drop() {
    if (!this.loading) return;
    Object.assign(this, { loading: null, image: null, truth: null, labels: null, confidence: null, layers: {} });
    for (const canvas of all(this.article, "canvas")) Object.assign(canvas, { width: 4, height: 3 });
  }
  layer(kind) {
    return (this.layers[kind] ??= this.paint(kind));
  }
  paint(kind) {
    const { image, truth, labels, confidence, width, height } = this, { drawn, subject: { palette } } = this.gallery;
    const ofClass = id => (id === NONE ? [0, 0, 0] : drawn[id] ? palette[id] : null);
    const isWrong = i => truth[i] !== labels[i] && (drawn[truth[i]] || drawn[labels[i]]);
    const look = { // the RGB of a pixel, or null where the pale image is enough
      image: i => image.subarray(i, i + 3),
      truth: i => ofClass(truth[i]),
      labels: i => ofClass(labels[i]),
      errors: i => (truth[i] === NONE ? IGNORED : isWrong(i) ? WRONG : null),
      confidence: i => mix(UNSURE, SURE, confidence[i] / 255),
    }[kind];
    const picture = new ImageData(width, height), out = picture.data.fill(255);
    for (let i = 0; i < out.length; i += 4) {
      const rgb = look(i), grey = rgb ? 0 : 140 + 0.42 * (image ? 0.3 * image[i] + 0.6 * image[i + 1] + 0.1 * image[i + 2] : 180);
      out.set(rgb ?? [grey, grey, grey], i);
    }
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }
  draw() {
    if (!this.labels) return;
    const { width, height } = this;
    for (const canvas of this.wipe?.open ? [...this.canvases, this.wide] : this.canvases) {
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d"), { kind } = canvas.dataset;
      context.drawImage(this.layer(kind === "wipe" ? this.a.value : kind), 0, 0);
      if (kind === "wipe") this.drawWipe(context);
      this.drawMarks(context);
    }
  }
  drawWipe(context) {
    const x = Math.round(this.width * this.slider.value / 100), rest = this.width - x;
    if (rest) context.drawImage(this.layer(this.b.value), x, 0, rest, this.height, x, 0, rest, this.height);
    context.fillStyle = "#fff";
    context.fillRect(x - 1, 0, 2, this.height);
  }
  drawMarks(context) {
    const twice = path => [["#000", 4], ["#fff", 1.5]].forEach(([stroke, width]) => {
      Object.assign(context, { strokeStyle: stroke, lineWidth: width });
      context.beginPath();
      path();
      context.stroke();
    });
    const { box } = this.example;
    if (box) twice(() => context.rect(box[1], box[0], box[3] - box[1], box[2] - box[0]));
    if (!this.at) return;
    const [x, y] = this.at.map(value => value + 0.5), long = this.width / 40;
    twice(() => [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(([u, v]) => {
      context.moveTo(x + 3 * u, y + 3 * v);
      context.lineTo(x + long * u, y + long * v);
    }));
  }
  point(canvas, event) {
    const scale = this.width / canvas.clientWidth;
    if (canvas === this.wide && event.buttons) this.slider.value = 100 * event.offsetX / canvas.clientWidth;
    this.read(Math.floor(event.offsetX * scale), Math.floor(event.offsetY * scale));
  }
  key(event) {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    const [x, y] = this.at ?? [this.width >> 1, this.height >> 1], far = event.shiftKey ? 1 : Math.max(1, this.width >> 6);
    this.read(x + far * step[0], y + far * step[1]);
  }
  read(x, y) {
    if (!this.labels) return;
    this.at = [clamp(x, 0, this.width - 1), clamp(y, 0, this.height - 1)];
    const i = 4 * (this.at[1] * this.width + this.at[0]), { names } = this.gallery.subject, words = [];
    if (this.truth) words.push(`truth ${this.truth[i] === NONE ? "ignored" : names[this.truth[i]]}`);
    words.push(`prediction ${this.labels[i] === NONE ? "no class" : names[this.labels[i]]}`);
    if (this.confidence) words.push(`confidence ${Math.round(this.confidence[i] / 2.55)} %`);
    this.output.textContent = words.join(", ");
    this.draw();
  }
}

class Gallery {
  constructor(root, subject) {
    Object.assign(this, { root, subject, drawn: new Uint8Array(256).fill(1) });
    const form = root.querySelector("form"), watcher = new IntersectionObserver(seen => seen.forEach(this.seen), { rootMargin: "600px" });
    this.count = form.querySelector("output");
    this.choice = Object.fromEntries(all(form, "select").map(select => [select.name, select]));
    this.views = new Map(all(root, "article").map((article, i) => [article, new View(article, subject.examples[i], this)]));
    const classes = [...new Set(subject.examples.flatMap(example => example.classes))].sort((a, b) => a - b);
    classes.forEach(id => this.choice.class.append(make("option", { value: id, textContent: subject.names[id] })));
    this.legend(form.querySelector(".legend"), classes);
    form.addEventListener("submit", event => event.preventDefault());
    Object.values(this.choice).forEach(select => select.addEventListener("input", () => this.arrange()));
    form.querySelector(".print").addEventListener("click", async () => { await Promise.all([...this.views.values()].map(view => view.show())); print(); });
    this.views.forEach((_, article) => watcher.observe(article));
    this.arrange();
  }
  seen = ({ target, isIntersecting }) => (isIntersecting ? this.views.get(target).show() : this.views.get(target).drop());
  legend(box, classes) {
    box.open = classes.length <= 24;
    const patch = rgb => {
      const made = make("i");
      made.style.background = `rgb(${rgb})`;
      return made;
    };
    const boxes = classes.map(id => {
      const input = make("input", { type: "checkbox", checked: true, value: id }), name = make("span", { textContent: this.subject.names[id] });
      box.querySelector("ul").append(make("li", {}, make("label", {}, input, patch(this.subject.palette[id]), name)));
      return input;
    });
    const redraw = () => {
      boxes.forEach(input => { this.drawn[input.value] = input.checked; });
      this.views.forEach(view => { view.layers = {}; view.draw(); });
    };
    box.addEventListener("input", redraw);
    all(box, "[data-all]").forEach(button => button.addEventListener("click", () => {
      boxes.forEach(input => { input.checked = Boolean(button.dataset.all); });
      redraw();
    }));
    const states = [[WRONG, "wrong"], [[200, 200, 200], "right, or a class that is not drawn"], [IGNORED, "ignored"], [UNSURE, "unsure"], [SURE, "sure"]];
    box.after(make("div", { className: "states" }, ...states.map(([rgb, text]) => make("span", {}, patch(rgb), text))));
  }
  arrange() {
    const { reason, class: chosen, sort } = this.choice, articles = [...this.views.keys()];
    const of = article => this.views.get(article).example;
    const order = {
      name: (a, b) => a.querySelector("h4").textContent.localeCompare(b.querySelector("h4").textContent),
      miou: (a, b) => (of(a).miou ?? 2) - (of(b).miou ?? 2), sure: (a, b) => (of(a).sure ?? 2) - (of(b).sure ?? 2),
    }[sort.value];
    this.root.append(...[...articles].sort(order));
    for (const article of articles) {
      const { reasons, classes } = of(article);
      article.hidden = !((!reason.value || reasons.includes(reason.value)) && (!chosen.value || classes.includes(Number(chosen.value))));
    }
    this.count.textContent = `${articles.filter(article => !article.hidden).length} of ${articles.length} images`;
  }
}
