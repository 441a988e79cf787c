// The console: shows what the state route tells, once a second, and calls the documented routes.
// All text goes in by textContent, for ids, names and values may hold anything.

const SECOND = 1000;
const LONGEST_WAIT = 20 * SECOND;
const CALLS_SHOWN = 8;
const { api, console: own } = document.body.dataset;
const $ = (id) => document.getElementById(id);

let key = ""; // in memory alone: a reload forgets it
let state = null; // the newest that was shown
let asked = 0; // how often
let newest = 0; // of the answers that were shown
let timer;
let turn = Promise.resolve(); // what is pressed is called in its order
const shown = new Map(); // client's id → what its row shows, to touch only what has changed
const lastSeen = new Map(); // client and entry → its value, for while the store is away

function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

async function call(method, path) {
  const began = performance.now();
  const answer = { method, path, status: 0, text: "", body: {} };
  try {
    const response = await fetch(path, {
      method,
      headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
      cache: "no-store",
      signal: AbortSignal.timeout(LONGEST_WAIT),
    });
    answer.status = response.status;
    answer.text = await response.text();
    answer.body = JSON.parse(answer.text);
  } catch {
    // No answer, or none in JSON: the status tells.
  }
  answer.took = Math.round(performance.now() - began);
  return answer;
}

// --- what is shown ---

const ROWS = { active: "ok", inactive: "off", gone: "bad" };
const VERDICTS = {
  agrees: ["ok", "agrees with the row"],
  differs: ["bad", "does not say what the row says"],
  left: ["bad", "left over: the row does not want it"],
  absent: ["off", "not there"],
  unknown: ["pending", "cannot be read"],
};
const ACTIONS = { soft: "Soft delete", restore: "Restore", hard: "Hard delete" };

const isPending = (record) => record.settled_at === null;
const pendingOf = (id) => state.records.find((record) => record.client_id === id && isPending(record));

function entry(id, { key, value, verdict }) {
  const place = `${id} ${key}`;
  if (value !== null) lastSeen.set(place, value);
  const [look, words] = VERDICTS[verdict];
  const says = verdict === "unknown" ? lastSeen.get(place) : value;
  const item = make("li", verdict, make("code", "key", key), make("span", `badge ${look}`, words));
  if (says) item.append(make("code", "value", verdict === "unknown" ? `last seen: ${says}` : says));
  return item;
}

function showClient(client) {
  const pending = pendingOf(client.id);
  const news = JSON.stringify([client, pending]);
  if (shown.get(client.id) === news) return;
  shown.set(client.id, news);
  const row = rowOf(client.id);
  row.classList.toggle("unfinished", Boolean(pending));
  row.querySelector(".id").textContent = client.id;
  row.querySelector(".name").textContent = client.name;
  row.querySelector(".row").replaceChildren(
    make("span", `badge ${ROWS[client.row]}`, client.row),
    ...(pending ? [" ", make("span", "badge pending", "record pending")] : []),
  );
  row.querySelector(".entries ul").replaceChildren(...client.entries.map((each) => entry(client.id, each)));
  for (const button of row.querySelectorAll("button")) {
    const { action } = button.dataset;
    const again = pending?.action === action;
    const label = ACTIONS[action] + (again ? " again" : "") + (action === "hard" ? "…" : "");
    button.firstChild.textContent = label;
    button.querySelector(".of").textContent = ` ${client.id}`;
    button.classList.toggle("again", again);
    disable(button, client.row === "gone" && !again);
  }
}

function rowOf(id) {
  const rows = [...$("clients").tBodies[0].rows];
  const found = rows.find((row) => row.dataset.id === id);
  if (found) return found;
  const row = $("client").content.firstElementChild.cloneNode(true);
  row.dataset.id = id;
  $("clients").tBodies[0].insertBefore(row, rows.find((other) => other.dataset.id > id) ?? null);
  return row;
}

function time(text) {
  const element = make("time", "", new Date(text).toLocaleTimeString("en-GB"));
  element.dateTime = text;
  return element;
}

function showLedger(records) {
  const news = JSON.stringify(records);
  if (shown.get("") === news) return; // no client has this id
  shown.set("", news);
  const rows = records.map((record) => {
    const row = make("tr", isPending(record) ? "unfinished" : "");
    row.setAttribute("role", "row");
    const settled = record.settled_at ? time(record.settled_at) : make("span", "badge pending", "pending");
    const verified = record.verified_at ? time(record.verified_at) : "–";
    const client = make("th", "id", record.client_id);
    client.scope = "row";
    client.setAttribute("role", "rowheader");
    row.append(client);
    for (const [label, content] of [
      ["Action", record.action],
      ["By", record.actor],
      ["Requested", time(record.requested_at)],
      ["Settled", settled],
      ["Verified", verified],
    ]) {
      const cell = make("td", "", content);
      cell.dataset.label = label;
      cell.setAttribute("role", "cell");
      row.append(cell);
    }
    return row;
  });
  if (rows.length) $("ledger").tBodies[0].replaceChildren(...rows);
}

function badge(id, look, words) {
  if ($(id).textContent === words) return;
  $(id).className = `badge ${look}`;
  $(id).textContent = words;
}

function show(news) {
  state = news;
  const ids = new Set(news.clients.map(({ id }) => id));
  for (const row of [...$("clients").tBodies[0].rows]) {
    if (ids.has(row.dataset.id)) continue;
    shown.delete(row.dataset.id);
    row.remove(); // a demo client that is long gone
  }
  news.clients.forEach(showClient);
  showLedger(news.records);
  badge("store-state", news.away ? "bad" : "ok", news.away ? "away" : "running");
  badge("pending", news.pending ? "pending" : "ok", news.pending ? `${news.pending} pending` : "nothing pending");
  document.body.classList.toggle("outage", Boolean(news.away));
  disable($("reconcile"), false);
  if (!news.switch) return;
  $("unplug").setAttribute("aria-checked", String(!news.switch.plugged));
  disable($("unplug"), false);
  disable($("forget"), false);
  $("copied").replaceChildren("The copy is of ", time(news.switch.copied_at), ", when this server started.");
}

function disable(button, whether) {
  if (whether && button === document.activeElement) $("answers").focus(); // or the focus would be lost
  button.disabled = whether;
}

// --- asking, once a second ---

async function refresh() {
  const mine = ++asked;
  const answer = await call("GET", `${own}/state`);
  if (mine < newest) return answer; // a later one was quicker
  newest = mine;
  if (answer.status === 200) show(answer.body);
  else if (answer.status === 401 || answer.status === 403) lock(answer);
  else badge("store-state", "bad", "this page is out of date: the server does not answer");
  return answer;
}

async function poll() {
  clearTimeout(timer);
  if (!key || document.visibilityState !== "visible") return;
  await refresh();
  clearTimeout(timer);
  timer = setTimeout(poll, SECOND);
}

document.addEventListener("visibilitychange", poll);

// --- the key ---

function lock(answer) {
  key = "";
  for (const button of document.querySelectorAll("main button:not(.primary, #put-away)")) button.disabled = true;
  shown.clear();
  $("key-form").hidden = false;
  $("key-used").hidden = true;
  const wrong = "This is no key of this server.";
  $("key-said").textContent = answer.status === 401 ? wrong : answer.body.message ?? "The server does not answer.";
  $("key-said").classList.add("wrong");
  $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    lock({ status: 401 });
    return;
  }
  const answer = await refresh();
  if (answer.status !== 200) {
    lock(answer);
    return;
  }
  $("key").value = "";
  $("key").removeAttribute("aria-invalid");
  $("key-form").hidden = true;
  $("key-used").hidden = false;
  $("key-said").textContent = "Kept in this page's memory alone: a reload forgets it.";
  $("key-said").classList.remove("wrong");
  ($("unplug") ?? $("reconcile")).focus();
  poll();
});

$("put-away").addEventListener("click", () => location.reload());

// --- the buttons ---

const PENDING = {
  soft: "The row is inactive, the record is pending: the key-value store has not confirmed.",
  restore: "The row is active again, the record is pending: the key-value store has not confirmed.",
  hard: "The row is gone, the record is pending: the key-value store has not confirmed.",
};
const DONE = {
  soft: "Soft-deleted. The row is inactive, and the entries say so.",
  restore: "Restored. The row is active, and the entries say so.",
  hard: "Gone for good: the row, and every entry. Both stores have confirmed.",
  unplug: "The key-value store is away: its process has been killed.",
  "plug-in": "The key-value store is back, on all that it had confirmed.",
  forget: "The key-value store is back, on an older copy of itself. What was confirmed since is lost.",
};

const wrongEntries = ({ clients }) =>
  clients.flatMap(({ entries }) => entries).filter(({ verdict }) => verdict === "differs" || verdict === "left")
    .length;

function words(action, id, answer, before) {
  const { status, body } = answer;
  if (status === 200 && action === "reconcile") {
    const repaired = Math.max(0, before - wrongEntries(state));
    const counts = `Settled ${body.settled}, verified ${body.verified}, failed ${body.failed}.`;
    return `${counts} ${repaired} ${repaired === 1 ? "entry" : "entries"} repaired.`;
  }
  if (status === 200) {
    const seen = action !== "forget" || wrongEntries(state) || state.pending;
    return DONE[action] + (seen ? "" : " Nothing that you see has changed since: delete a client first.");
  }
  if (status === 503 && id && pendingOf(id)) return `${PENDING[action]} Press again or reconcile.`;
  if (status === 503 && action === "reconcile") return "A store is away. What is pending stays pending.";
  if (status === 404) return "There is no such client, and nothing is pending for it.";
  if (!status) return "No answer. Is the server still running?";
  return body.message ?? "The server has failed; its log tells more.";
}

function tell(answer, said) {
  const look = answer.status === 200 ? "ok" : answer.status === 503 ? "pending" : "bad";
  const item = make(
    "li",
    "",
    make(
      "p",
      "call",
      make("span", `badge ${look}`, answer.status ? String(answer.status) : "no answer"),
      make("code", "", `${answer.method} ${answer.path}`),
      make("span", "took", `${answer.took} ms`),
    ),
    make("p", "words", said),
  );
  if (answer.text) item.append(make("pre", "", make("code", "", answer.text.trim().slice(0, 500))));
  const others = [...$("calls").children].filter((other) => !other.classList.contains("hint"));
  $("calls").replaceChildren(item, ...others.slice(0, CALLS_SHOWN - 1));
  $("said").textContent = answer.status ? `${answer.status}: ${said}` : said;
}

function press(action, method, path, id) {
  turn = turn.then(async () => {
    if (!key) return;
    if (action === "reconcile") await refresh(); // to count what it repairs
    const before = state ? wrongEntries(state) : 0;
    const answer = await call(method, path);
    await refresh();
    tell(answer, words(action, id, answer, before));
    advance(action, answer);
  });
  return turn;
}

// --- the steps to try ---

const done = new Set();

function advance(action, { status }) {
  const after = (step) => done.has(step);
  if (status === 200 && action === "unplug") reach("unplug");
  if (status === 503 && action === "soft") reach("503");
  if (status === 200 && action === "plug-in" && after("503")) reach("plug");
  const finished = action === "soft" || action === "reconcile";
  if (status === 200 && finished && after("plug") && !state.pending) reach("settle");
  if (status === 200 && action === "forget" && wrongEntries(state)) reach("forget");
  if (status === 200 && action === "reconcile" && after("forget")) reach("repair");
}

function reach(name) {
  const step = $(`step-${name}`);
  if (!step || done.has(name)) return;
  done.add(name);
  step.classList.add("done");
  step.append(make("span", "unseen", " Done."));
}

$("clients").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  const { id } = button.closest("tr").dataset;
  const path = `${api}/clients/${encodeURIComponent(id)}`;
  if (button.dataset.action === "soft") press("soft", "DELETE", path, id);
  if (button.dataset.action === "restore") press("restore", "POST", `${path}/restore`, id);
  if (button.dataset.action === "hard") ask(id);
});

$("reconcile").addEventListener("click", () => press("reconcile", "POST", `${own}/reconcile`));
$("forget")?.addEventListener("click", () => press("forget", "POST", `${own}/forget`));
$("unplug")?.addEventListener("click", () => {
  const action = state.switch.plugged ? "unplug" : "plug-in";
  press(action, "POST", `${own}/${action}`);
});

// --- the question before a hard delete; on closing, the browser gives the focus back ---

function ask(id) {
  $("sure-wanted").textContent = id;
  $("sure-id").value = "";
  $("sure-yes").disabled = true;
  $("sure").showModal();
  $("sure-id").focus();
}

$("sure-id").addEventListener("input", () => {
  $("sure-yes").disabled = $("sure-id").value !== $("sure-wanted").textContent;
});
$("sure-not").addEventListener("click", () => $("sure").close());
$("sure-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("sure-wanted").textContent;
  if ($("sure-id").value !== id) return;
  $("sure").close();
  press("hard", "DELETE", `${api}/clients/${encodeURIComponent(id)}?hard=true`, id);
});
