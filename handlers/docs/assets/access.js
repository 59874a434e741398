// A plugin of Swagger UI, in development only: choose a caller, and see the gate's answer beside every route.
"use strict";

const OTHER = "another caller";
const FIELDS = ["user", "org", "role", "permission", "scope", "feature", "plan", "token_type"];
const MANY = new Set(["permission", "scope", "feature", "plan"]);

// What is chosen; every badge listens.
const callers = { answers: new Map(), listeners: new Set() };

// The template as the document has it: parameters without their patterns.
const pathOf = (template) => template.replace(/\{(\w+):(?:[^{}]|\{[^{}]*\})*\}/g, "{$1}");

function show(rows, name) {
  callers.answers = new Map(rows.map((row) => [`${row.method} ${pathOf(row.route)}`, row.callers[name]]));
  callers.listeners.forEach((listener) => listener());
}

const inWords = (answer) => (answer.status === 200 ? "yes" : [answer.status, answer.status === 401 ? null : answer.reason].filter(Boolean).join(" "));

async function fetchRows(query) {
  const response = await fetch(`docs/access.json${query}`, { cache: "no-store", credentials: "omit" });
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? body.error);
  return body;
}

// Beside a route: the answer to the chosen caller.
function badgeOf({ createElement: make, useEffect, useReducer }) {
  return function Badge({ method, path }) {
    const [, again] = useReducer((count) => count + 1, 0);
    useEffect(() => {
      callers.listeners.add(again);
      return () => callers.listeners.delete(again);
    }, []);
    const answer = callers.answers.get(`${method.toUpperCase()} ${path}`);
    if (!answer) return null;
    return make("span", { className: `answer answer-${answer.status === 200 ? "yes" : "no"}` }, inWords(answer));
  };
}

// Above the routes: who calls.
function chooserOf({ createElement: make, useEffect, useState }) {
  return function Chooser() {
    const [usual, setUsual] = useState([]);
    const [chosen, choose] = useState("");
    const [given, setGiven] = useState({});
    const [words, say] = useState("");
    useEffect(() => void fetchRows("").then(setUsual, (error) => say(error.message)), []);

    const count = (rows, name) => `${rows.filter((row) => row.callers[name].status === 200).length} of ${rows.length} routes`;
    const take = (rows, name) => {
      show(rows, name);
      say(name ? `The gate lets this caller into ${count(rows, name)}.` : "");
    };
    const pick = (name) => {
      choose(name);
      if (name === OTHER) take([], "");
      else take(name ? usual : [], name);
    };
    const ask = async (event) => {
      event.preventDefault();
      const query = new URLSearchParams();
      for (const [name, text] of Object.entries(given)) {
        for (const word of MANY.has(name) ? text.split(/[\s,]+/) : [text.trim()]) if (word) query.append(name, word);
      }
      try {
        if (!query.size) throw new Error("Describe the caller first.");
        take(await fetchRows(`?${query}`), "this caller");
      } catch (error) {
        take([], "");
        say(error.message);
      }
    };

    const option = (name, text) => make("option", { key: name, value: name }, text ?? name);
    const field = (name) =>
      make("label", { key: name }, name.replace("_", " "),
        make("input", { name, value: given[name] ?? "", spellCheck: false, autoComplete: "off",
          onChange: (event) => setGiven({ ...given, [name]: event.target.value }) }));
    return make("form", { className: "callers wrapper", onSubmit: ask },
      make("label", null, "Who may call what: ",
        make("select", { className: "callers-choice", value: chosen, onChange: (event) => pick(event.target.value) },
          option("", "choose a caller"), Object.keys(usual[0]?.callers ?? {}).map((name) => option(name)), option(OTHER))),
      chosen === OTHER
        ? make("div", { className: "callers-fields" }, FIELDS.map(field), make("button", { className: "btn callers-ask" }, "Show"))
        : null,
      make("span", { className: "callers-words", "aria-live": "polite" }, words));
  };
}

// Named by page.js.
window.withCallers = () => ({
  wrapComponents: {
    FilterContainer: (Filter, system) => {
      const Chooser = chooserOf(system.React);
      return (props) => system.React.createElement(system.React.Fragment, null,
        system.React.createElement(Chooser), system.React.createElement(Filter, props));
    },
    OperationSummaryPath: (Path, system) => {
      const Badge = badgeOf(system.React);
      return (props) => system.React.createElement(system.React.Fragment, null,
        system.React.createElement(Path, props),
        system.React.createElement(Badge, { method: props.operationProps.get("method"), path: props.operationProps.get("path") }));
    },
  },
});
