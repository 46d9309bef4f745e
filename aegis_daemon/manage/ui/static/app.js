// Makes pages live. What an agent or a server wrote becomes text and never markup: rows are built with textContent,
// and cards are taken over from the server's own page, which has escaped them. Without this file everything works, only
// not by itself.

const ROWS = 300;
const HIDDEN_MS = 15000;
const AGAIN_MS = 5000;
// Where this site alone can look. The cookie goes to every port of this host, and whoever listens there has it.
const CSRF = "aegis-csrf";
const page = document.documentElement.dataset.page;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- time -------------------------------------------------------------------------------------------------------------

function span(seconds) {
  let left = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

function clock(at) {
  const then = new Date(at);
  if (Number.isNaN(then.getTime())) return at;
  const time = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  if (then.toDateString() === new Date().toDateString()) return time;
  return `${then.toLocaleDateString([], { day: "2-digit", month: "short" })} ${time.slice(0, 5)}`;
}

function tick() {
  const now = Date.now();
  for (const place of all("[data-expires]")) {
    const left = (Date.parse(place.dataset.expires) - now) / 1000;
    const text = one("[data-left]", place);
    if (text) text.textContent = left > 0 ? span(left) : "expired";
    const bar = one("progress", place);
    if (bar) bar.value = Math.max(0, left);
    place.classList.toggle("soon", left < 60);
  }
}

function localTimes(root = document) {
  for (const place of all("time[data-local]", root)) {
    place.textContent = clock(place.dateTime);
    place.title = place.dateTime;
  }
}

function took(micros) {
  if (micros === null || micros === undefined) return "";
  if (micros < 10000) return `${(micros / 1000).toFixed(1)} ms`;
  if (micros < 1e6) return `${Math.floor(micros / 1000)} ms`;
  return micros < 6e7 ? `${(micros / 1e6).toFixed(1)} s` : span(micros / 1e6);
}

// --- small things -----------------------------------------------------------------------------------------------------

function toast(text) {
  const place = one("[data-toast]");
  if (!place) return;
  place.textContent = text;
  place.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { place.hidden = true; }, 6000);
}

function count(pending) {
  document.title = document.title.replace(/^\(\d+\) /, "");
  if (pending) document.title = `(${pending}) ${document.title}`;
  const badge = one("[data-pending]");
  if (!badge) return;
  badge.dataset.pending = pending;
  badge.textContent = pending;
  badge.hidden = !pending;
}

function changed(number) {
  for (const place of all("[data-changed]")) place.textContent = number;
  for (const place of all("[data-changed-shown]")) place.hidden = !number;
}

// What servers offer has changed, or a person trusted it: the list is looked at anew, unless somebody is in it.
async function pinsEvent(told) {
  const before = Number(one("[data-changed]")?.textContent ?? 0);
  changed(told.changed);
  const old = one("[data-pins]");
  if (!old) {
    if (told.changed > before && page !== "tools") toast("Something that a server offers has changed");
    return;
  }
  if (old.contains(document.activeElement)) return;
  const found = await fetched("/ui/tools").catch(() => null);
  const fresh = found && one("[data-pins]", found);
  if (fresh) one("[data-pins]").replaceWith(document.importNode(fresh, true));
  localTimes();
}

// A form is on its way and will load a page of its own.
let leaving = false;

// The session is over. Said at the door, so that nobody wonders; a logout under way gets there by itself.
function out() {
  if (!leaving) location.assign("/ui/login?ended");
}

async function fetched(address) {
  const answer = await fetch(address, { credentials: "same-origin", redirect: "manual", headers: { accept: "text/html" } });
  if (answer.type === "opaqueredirect" || answer.status === 401) { out(); return null; }
  if (!answer.ok) return null;
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// --- the inbox --------------------------------------------------------------------------------------------------------

const inbox = one("[data-inbox]");

// A card that comes or goes moves those behind it under a pointer that is about to press something: it does not go
// while one is over another card's buttons, and a button that has just moved takes nothing.
const SETTLE_MS = 700;
const moved = new WeakMap();

function shifted(card) {
  for (let next = card.nextElementSibling; next; next = next.nextElementSibling) moved.set(next, performance.now());
}

function goes(card) {
  if (one("[data-decide]:hover", inbox || document)) {
    setTimeout(goes, 1000, card);
    return;
  }
  shifted(card);
  card.remove();
  empty();
}

function empty() {
  const place = inbox && one("[data-empty]", inbox);
  if (place) place.hidden = Boolean(one("[data-ticket]:not(.leaving)", inbox));
}

function say(card, text, bad = false) {
  const place = one("[data-said]", card);
  place.textContent = text;
  place.classList.toggle("bad", bad);
  place.hidden = false;
}

function leave(card, text) {
  if (card.classList.contains("leaving")) return;
  card.classList.add("leaving");
  for (const form of all("[data-decide]", card)) form.remove();
  say(card, text);
  setTimeout(goes, 4000, card);
  empty();
}

// The stream says how a ticket ended; where a page only sees that it did, it waits a moment for that.
const GONE_MS = 1500;
let looking = false;
let again = false;

async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    do {
      again = false;
      const found = await fetched("/ui");
      const fresh = found && one("[data-inbox]", found);
      if (!fresh) break;
      const wanted = new Map(all("[data-ticket]", fresh).map((card) => [card.dataset.call, card]));
      for (const card of all("[data-ticket]", inbox)) {
        const next = wanted.get(card.dataset.call);
        if (!next) setTimeout(leave, GONE_MS, card, "decided, or expired");
        if (next && next.dataset.version !== card.dataset.version) {
          // Not the whole card: somebody may be writing a reason there.
          card.dataset.version = next.dataset.version;
          one(".facts", card).replaceWith(document.importNode(one(".facts", next), true));
        }
      }
      let before = null;
      for (const card of wanted.values()) {
        const here = all("[data-ticket]", inbox).find((known) => known.dataset.call === card.dataset.call);
        if (here) { before = here; continue; }
        const made = document.importNode(card, true);
        if (before) before.after(made); else inbox.prepend(made);
        shifted(made);
        before = made;
      }
      const [old, more] = [one(".more", inbox), one(".more", fresh)];
      if (old) old.remove();
      if (more) inbox.append(document.importNode(more, true));
      for (const part of [".agreed", ".overview"]) {
        const [old, fresh] = [one(part), one(part, found)];
        if (old && fresh) old.replaceWith(document.importNode(fresh, true));
        else if (old) old.remove();
        else if (fresh) inbox.after(document.importNode(fresh, true));
      }
      localTimes();
      empty();
      tick();
    } while (again);
  } catch {
    // The daemon is away: the stream says so, and comes back.
  } finally {
    looking = false;
  }
}

let soon;
function lookSoon() {
  clearTimeout(soon);
  soon = setTimeout(look, 200);
}

function ticketEvent(event) {
  count(event.pending);
  if (!inbox) {
    if (event.event === "opened" && page !== "inbox" && !ticketEvent.quiet) toast("A call waits for you");
    return;
  }
  const card = all("[data-ticket]", inbox).find((known) => known.dataset.call === event.call_id);
  if (["decided", "expired", "consumed"].includes(event.event)) {
    if (card) leave(card, event.event === "expired" ? "expired" : `${event.state}${event.by ? ` by ${event.by}` : ""}`);
    lookSoon();
    return;
  }
  if (event.state === "pending" && (!card || ["attached", "waiter_gone", "voted"].includes(event.event))) lookSoon();
}

// Before anything else sees the form.
document.addEventListener("submit", (event) => {
  const field = one('input[name="csrf"]', event.target);
  if (field && !field.value) field.value = localStorage.getItem(CSRF) ?? "";
}, true);

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-decide]")) return;
  event.preventDefault();
  const card = form.closest("[data-ticket]");
  if (performance.now() - (moved.get(card) ?? -SETTLE_MS) < SETTLE_MS) {
    say(card, "the list has just moved, so this was not taken: look, and press again", true);
    return;
  }
  const fields = new URLSearchParams(new FormData(form, event.submitter));
  for (const button of all("button", form)) button.disabled = true;
  try {
    const answer = await fetch(form.getAttribute("action"), {  // `form.action` is its button of that name
      method: "POST", body: fields, credentials: "same-origin", redirect: "manual", headers: { accept: "application/json" },
    });
    if (answer.status === 401) { out(); return; }
    const told = await answer.json();
    if (answer.ok && told.state !== "pending") {
      count(told.pending);
      leave(card, told.said);
      if (page === "inbox" && !inbox) location.assign("/ui");
    } else if (answer.ok) {
      say(card, told.said);
      lookSoon();
    } else {
      say(card, told.hint ? `${told.error}; ${told.hint}` : told.error, true);
      if (answer.status === 404 || answer.status === 409) lookSoon();
      else for (const button of all("button", form)) button.disabled = false;
    }
  } catch {
    say(card, "the daemon did not answer; nothing is known of this decision: look again", true);
    for (const button of all("button", form)) button.disabled = false;
  }
});

// Enter in the reason must not press the first button of the form, which approves.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("[data-decide] input")) {
    event.preventDefault();
    one('button[value="reject"]', event.target.form).focus();
  }
});

// --- the live page ----------------------------------------------------------------------------------------------------

const feed = one("[data-feed]");
const WORDS = { success: "ran", error: "failed", denied: "refused", unknown: "outcome unknown", held: "waits for you", running: "runs" };

function cell(row, ...parts) {
  const place = document.createElement("td");
  place.append(...parts);
  row.append(place);
  return place;
}

function made(tag, kind, text) {
  const place = document.createElement(tag);
  if (kind) place.className = kind;
  place.textContent = text;
  return place;
}

function verdict(call) {
  const place = made(call.state === "held" ? "a" : "span", `state s-${call.state}`, WORDS[call.state]);
  if (call.state === "held") place.href = `/ui/tickets/${encodeURIComponent(call.call_id)}`;
  return place;
}

function callEvent(call) {
  if (!feed) return;
  const body = feed.tBodies[0];
  const known = all("tr[data-call]", body).find((row) => row.dataset.call === call.call_id);
  if (known && Number(known.dataset.seq) > call.seq && known.dataset.state) return;
  if (known && !call.agent_id) return;
  const row = document.createElement("tr");
  row.dataset.call = call.call_id;
  row.dataset.seq = call.seq;
  row.dataset.state = call.state;
  const time = made("time", "", clock(call.at));
  time.dateTime = call.at;
  time.title = call.at;
  cell(row, time);
  cell(row, call.agent_id);
  const link = made("a", "", call.method === "tools/call" ? call.tool_name : `${call.method} ${call.tool_name}`.trim());
  link.href = `/ui/audit/${encodeURIComponent(call.call_id)}`;
  cell(row, link, " ", made("span", "muted", call.backend_id));
  cell(row, verdict(call), call.stage ? " " : "", made("span", "muted", call.stage));
  cell(row, took(call.duration_us)).className = "num";
  if (known) known.replaceWith(row);
  else {
    row.className = "new";
    body.prepend(row);
    while (body.rows.length > ROWS) body.lastElementChild.remove();
  }
  const none = one("[data-empty]");
  if (none) none.hidden = true;
}

async function feedAgain() {
  const found = await fetched("/ui/live").catch(() => null);
  const fresh = found && one("[data-feed]", found);
  if (!fresh) return;
  feed.tBodies[0].replaceWith(document.importNode(fresh.tBodies[0], true));
  localTimes();
}

function pulse(text) {
  const place = one("[data-pulse]");
  if (place) place.textContent = text;
}

// --- the stream -------------------------------------------------------------------------------------------------------

let source = null;

function begin() {
  if (source || document.hidden) return;
  source = new EventSource(`/ui/events${feed ? "?calls=1" : ""}`);
  ticketEvent.quiet = true;
  setTimeout(() => { ticketEvent.quiet = false; }, 1500);
  const hear = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  let first = true;
  hear("sync", (told) => {
    away(false);
    count(told.pending);
    changed(told.changed);
    pulse("as it happens");
    if (inbox) lookSoon();
    if (feed && !first) feedAgain();
    first = false;
  });
  hear("ticket", ticketEvent);
  hear("pins", pinsEvent);
  hear("call", callEvent);
  hear("lost", (told) => pulse(`as it happens; ${told.lost} calls came too fast to be shown`));
  hear("bye", () => { end(); out(); });
  source.onerror = () => {
    away(true);
    // A daemon that comes back does not know this session: its answer ends the stream, and nothing here would be true.
    if (source && source.readyState === EventSource.CLOSED) { end(); comeBack(); }
  };
}

function end() {
  if (source) source.close();
  source = null;
}

// A page that is not live looks like one on which nothing happens; so it says so, wherever somebody is.
function away(yes) {
  const place = one("[data-away]");
  if (place) place.hidden = !yes;
  if (yes) pulse("not live");
}

function state() {
  return fetch("/ui/state", { credentials: "same-origin", headers: { accept: "application/json" } });
}

async function comeBack() {
  try {
    const answer = await state();
    if (answer.status === 401) { out(); return; }
  } catch {
    // It is asked again.
  }
  setTimeout(begin, AGAIN_MS);
}

async function poll() {
  if (!document.hidden) return;
  try {
    const answer = await state();
    if (answer.ok) {
      const told = await answer.json();
      count(told.pending);
      changed(told.changed);
    }
    else if (answer.status === 401) document.title = "Logged out - Aegis";
  } catch {
    // It is asked again.
  }
}

// --- parts that are looked at anew now and then ---------------------------------------------------------------------

async function refresh() {
  const old = one("[data-refresh]");
  if (!old || document.hidden || old.contains(document.activeElement) || String(getSelection())) return;
  if (one("[data-fold][open]", old)) return;
  const found = await fetched(location.pathname + location.search).catch(() => null);
  const fresh = found && one("[data-refresh]", found);
  if (fresh) old.replaceWith(document.importNode(fresh, true));
  localTimes();
  tick();
}

// --- the door ---------------------------------------------------------------------------------------------------------

const door = one("[data-login]");

async function enter(event) {
  try {
    localStorage.removeItem(CSRF);
  } catch {
    return; // nothing can be kept here: the form is sent as it is, and pages hold what forms need
  }
  event.preventDefault();
  try {
    const answer = await fetch("/ui/login", {
      method: "POST", body: new URLSearchParams(new FormData(door)), credentials: "same-origin", headers: { accept: "application/json" },
    });
    if (answer.ok) {
      localStorage.setItem(CSRF, (await answer.json()).csrf);
      location.replace("/ui");
      return;
    }
  } catch {
    // The form itself says what is wrong.
  }
  door.submit();
}

if (door) door.addEventListener("submit", enter);
// The address that `aegis ui` prints may also be pasted into a tab that shows the door already: only its end changes then.
function unlock() {
  if (location.hash.length < 2) return;
  const token = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  one("input", door).value = token;
  door.requestSubmit();
}

if (door) {
  addEventListener("hashchange", unlock);
  unlock();
}

if (!door && page !== "fault") {
  localTimes();
  tick();
  setInterval(tick, 1000);
  setInterval(poll, HIDDEN_MS);
  setInterval(refresh, 4000);
  document.addEventListener("visibilitychange", () => (document.hidden ? end() : begin()));
  addEventListener("pagehide", end);
  // A form that leaves the page is not overtaken by what the stream or a fetch under way says of it: a logout ends both.
  document.addEventListener("submit", (event) => {
    if (event.target.matches("[data-decide]")) return;
    leaving = true;
    end();
  });
  addEventListener("pageshow", (event) => { if (event.persisted) leaving = false; });
  begin();
}
