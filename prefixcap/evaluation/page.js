/* What the scripts of the report and of the leaderboard share. */
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24; // images that are shown at first, and more at a time
const find = (selector) => document.querySelector(selector);
const count = (number) => number.toLocaleString("en");
const figure = (number) => number === null ? "–" : number.toFixed(3);
let words = []; // of the filter
let most = PAGE; // of the images found, how many are shown

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* The text, with the words of the filter marked. */
function marked(text) {
  if (!words.length) return [text];
  const literal = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = text.split(new RegExp(`(${literal.join("|")})`, "i"));
  return parts.map((part, index) => index % 2 ? element("mark", {}, part) : part);
}
