"use strict";

const TOKEN = /^[A-Za-z0-9._~+\/-]+=*$/; // RFC 6750
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

const key = find("#key");
const said = find("#said");
const dialog = find("dialog");
const updates = all("form").map(prepare);

// A field that is wrong says so, and why.
function judge(field, wrong) {
  field.setAttribute("aria-invalid", Boolean(wrong));
  const place = document.getElementById(`${field.id}-wrong`);
  if (place && place.textContent !== wrong) place.textContent = wrong;
}

function judgeKey() {
  judge(key, !key.value || TOKEN.test(key.value) ? "" : "A key is letters, digits and . _ ~ + / - alone.");
}

function judgeField(field) {
  const { name, pattern } = field.dataset;
  // Not by the attribute `pattern`: browsers read it by other rules than the document's.
  const right = !pattern || new RegExp(pattern, "u").test(field.value);
  judge(field, right ? "" : `${name} must match ${pattern}`);
}

const isWrong = (field) => field.ariaInvalid === "true";

function prepare(form) {
  const { method, path } = form.dataset;
  const headers = JSON.parse(form.dataset.headers);
  const fields = all("[data-name]", form);
  const outcome = find(".outcome", form);
  const [authorization] = all("pre span", form);
  const [response] = all("div[hidden]", form);
  const [shownHeaders, shownBody] = all("pre", response);
  let busy = false;

  // A value that is wrong is not put in: where it belongs stands `<id>`, which is no id anywhere.
  function url() {
    const query = new URLSearchParams();
    let filled = path;
    for (const field of fields) {
      const { name, in: place } = field.dataset;
      const value = isWrong(field) ? `<${name}>` : encodeURIComponent(field.value);
      if (place === "path") filled = filled.replace(`{${name}}`, value);
      else if (field.value) query.set(name, field.value);
    }
    return location.origin + filled + (`${query}` && `?${query}`);
  }

  function update() {
    fields.forEach(judgeField);
    judgeKey();
    for (const place of all(".url", form)) place.textContent = url();
    find("button", form).disabled = fields.some(isWrong);
    const keyed = key.value !== "" && !isWrong(key);
    authorization.hidden = !keyed;
    find(".keyless", form).hidden = keyed;
  }

  async function send(asked) {
    outcome.className = "outcome";
    outcome.textContent = "Waiting for the answer …";
    response.hidden = true;
    const began = performance.now();
    try {
      const authorized = key.value ? { Authorization: `Bearer ${key.value}` } : {};
      const answer = await fetch(asked, { method, headers: { ...authorized, ...headers }, cache: "no-store" });
      const body = await answer.text();
      const milliseconds = Math.round(performance.now() - began);
      shownHeaders.textContent = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
      shownBody.textContent = pretty(body);
      response.hidden = false;
      outcome.classList.add(`of-${Math.floor(answer.status / 100)}`);
      const phrase = answer.statusText && ` ${answer.statusText}`; // HTTP/2 has none
      outcome.textContent = `${answer.status}${phrase} after ${milliseconds} ms`;
    } catch (error) {
      outcome.textContent = `No answer: ${error.message}`;
    }
    response.scrollIntoView({ block: "nearest" });
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = [...fields, key].find(isWrong);
    if (wrong) wrong.focus();
    if (wrong || busy) return;
    busy = true;
    const asked = url();
    const hard = method === "DELETE" && new URL(asked).searchParams.get("hard") === "true";
    if (!hard || (await isSure(`${method} ${asked}`))) await send(asked);
    busy = false;
  });
  find("button", form).addEventListener("click", ({ target }) => {
    copy(target, find(`pre.${find(":checked[name=language]", form).value}`, form));
  });
  find("button.main", form).disabled = false;
  return update;
}

function pretty(body) {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}

async function copy(button, code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    said.textContent = button.textContent = "Copied";
  } catch {
    // Over plain HTTP a page has no clipboard; what is selected, its reader can copy.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
    said.textContent = "Selected, to be copied with the keyboard";
  }
  clearTimeout(button.timer);
  button.timer = setTimeout(() => {
    button.textContent = "Copy";
    said.textContent = "";
  }, 2000);
}

function isSure(request) {
  find("code", dialog).textContent = request;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

for (const button of all("button", dialog)) {
  button.addEventListener("click", () => dialog.close(button.value));
}
key.addEventListener("input", () => updates.forEach((update) => update()));
// A language that is chosen once is shown everywhere.
addEventListener("change", ({ target: { name, value } }) => {
  if (name === "language") for (const radio of all(`[name=language][value=${value}]`)) radio.checked = true;
});
updates.forEach((update) => update());
