// Elements are made here and nowhere else. Data becomes text nodes and attributes, never markup.

/** An element; children are nodes or text, null is left out; a property `onclick` is a listener. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sentences of the report: **bold**, `code` and <br>; anything else is text. */
function prose(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]*`|<br>)/).filter(Boolean).map((part) => {
    if (part.startsWith("**") && part.length > 4) return el("strong", {}, part.slice(2, -2));
    if (part.startsWith("`") && part.length > 1) return el("code", {}, part.slice(1, -1));
    return part === "<br>" ? el("br") : part;
  });
}

/** Buttons of which one is pressed; `choices` are [value, label]. */
function choice(label, choices, chosen, onchoose) {
  const buttons = choices.map(([value, text]) =>
    el("button", {
      type: "button",
      "aria-pressed": String(value === chosen),
      onclick: (event) => {
        for (const other of event.currentTarget.parentElement.children) {
          other.setAttribute("aria-pressed", String(other === event.currentTarget));
        }
        onchoose(value);
      },
    }, text));
  return el("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** A labelled list to choose from; `choices` are [value, label]. */
function picker(label, choices, chosen, onchoose) {
  const select = el("select", { onchange: () => onchoose(select.value) },
    choices.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, text)));
  return el("label", { class: "picker" }, el("span", {}, label), select);
}

/** A section with a heading, a sentence on how to read it, and its content. */
function section(id, title, lead, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    lead ? el("p", { class: "lead" }, lead) : null,
    ...content.flat(Infinity).filter(Boolean));
}
