"use strict";
// What both pages are made with. Text of the run reaches the document as text nodes and as
// attributes of fixed names, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

const missing = (value) => value === null || value === undefined;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) {
      node.addEventListener(name.slice(2), value);
    } else if (!missing(value) && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => !missing(child)));
  return node;
}

function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function show(value, digits = 2) {
  return missing(value) ? "–" : value.toFixed(digits);
}

function signed(value) {
  if (missing(value)) return "–";
  const sign = value > 0 ? "+" : "";
  return sign + value.toFixed(2);
}

function plural(count, name) {
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}
