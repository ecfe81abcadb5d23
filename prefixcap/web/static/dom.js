// Elements, and what the page says to those who hear it.

let ids = 0;

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

export function newId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

// Screen readers read this out once they have nothing else to say; all results would be too much.
export function announce(text) {
  document.querySelector("#announce").textContent = text;
}

export function counted(number, noun) {
  return number === 1 ? `1 ${noun}` : `${number} ${noun}s`;
}

// A picture of the visitor's. It is read from memory while it is shown, and forgotten with `forget`.
export function show(file) {
  const image = element("img", { alt: file.name, src: URL.createObjectURL(file), loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(element("div", { class: "no-picture" }, "no picture")));
  return image;
}

export function forget(box) {
  for (const image of box.querySelectorAll("img")) URL.revokeObjectURL(image.src);
}

export function score({ similarity }) {
  if (similarity == null) return ""; // the encoder reads no texts
  const share = Math.max(0, Math.min(1, similarity));
  const title = "cosine of caption and picture, by the encoder: -1 to 1";
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span", { style: `width: ${100 * share}%` }));
  const number = element("span", { class: "cosine" }, similarity.toFixed(2));
  return element("span", { class: "score", title }, bar, element("span", { class: "unseen" }, "similarity "), number);
}

export function copyButton(text) {
  const copy = async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text).catch(() => copyOldWay(text));
    else copyOldWay(text);
    announce(`Copied: ${text}`);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  };
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy: ${text}`, title: "Copy", onclick: copy });
  return button;
}

// Where the page came neither from this machine nor by https, browsers have no `navigator.clipboard`.
function copyOldWay(text) {
  const before = document.activeElement;
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  before?.focus();
}
