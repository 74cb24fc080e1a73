// Reads the log of a run and names its symptoms. It knows no bound and no range: those come from the page.
window.runLog = (function () {
  const BROKEN = "It is no log of JSON lines, one object a line, as metrics.jsonl is.";
  const finite = (values) => values.filter(Number.isFinite);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const most = (values) => values.reduce((a, b) => Math.max(a, b));
  const least = (values) => values.reduce((a, b) => Math.min(a, b));
  const start = (values) => mean(values.slice(0, 5));
  const last = (values) => mean(values.slice(-5));
  const fives = (values) => values.slice(4).map((_, at) => mean(values.slice(at, at + 5)));

  // How a curve becomes the one number that a rule asks for, by the names of the gallery and of your_run.py.
  const PHASES = {
    "in the first update": (values) => values[0],
    "in the first 5 updates": start,
    "on average": mean,
    "in the last 5 updates": last,
    "at its highest": most,
    "over its highest 5 updates": (values) => most(fives(values)),
    "over its lowest 5 updates": (values) => least(fives(values)),
    "from update to update": (values) => mean(values.slice(1).map((value, at) => Math.abs(value - values[at]))),
    "from the first 5 updates to the last 5": (values) => last(values) - start(values),
    "from its highest to its last": (values) => values[values.length - 1] - most(values),
  };

  // Python writes NaN and Infinity, which JSON lacks.
  function parse(line) {
    let found;
    try {
      found = JSON.parse(line);
    } catch {
      try {
        found = JSON.parse(line.replace(/([:,[]\s*)-?(?:NaN|Infinity)\b/g, "$1null"));
      } catch {
        return null;
      }
    }
    return found && typeof found === "object" && !Array.isArray(found) ? found : null;
  }

  const list = (names) => names.slice(0, 4).join(", ") + (names.length > 4 ? ", …" : "");
  const many = (count, one, more) => `${count} ${count === 1 ? one : more || one + "s"}`;

  // The last run of the log, a row an update, and what is odd about it. Where there is none, it throws what to say.
  function read(text, known) {
    const lines = text.replace(/^\uFEFF/, "").split("\n").filter((line) => line.trim());
    if (!lines.length) throw new Error("It is empty. A run writes its first line after its first update.");
    const parsed = lines.map(parse);
    const whole = parsed.filter(Boolean);
    if (!whole.length) throw new Error(`${BROKEN} Choose the file of that name in the run's output_dir.`);
    const notes = [];
    if (!parsed[parsed.length - 1]) notes.push("The last line is cut off, as a killed run leaves it: it is left out.");
    const broken = parsed.slice(0, -1).filter((line) => !line).length;
    if (broken) notes.push(`${many(broken, "line is", "lines are")} not JSON and left out.`);

    const own = new Set(known);
    let rows = [];
    let runs = 1;
    let lost = 0;
    for (const line of whole) {
      const names = Object.keys(line).filter((name) => own.has(name));
      if (!names.length) continue;
      const { update, episode } = line; // TRL's log has no updates: its episodes say what comes first
      const row = { update, episode, order: update ?? episode };
      for (const name of names) {
        if (Number.isFinite(line[name])) row[name] = line[name];
        else lost += 1;
      }
      const before = rows[rows.length - 1];
      if (before && row.order < before.order) [rows, runs] = [[], runs + 1];
      if (before && row.order !== undefined && row.order === before.order) Object.assign(before, row);
      else rows.push(row);
    }
    if (!rows.length) {
      const there = Object.keys(whole[0]);
      throw new Error(
        `No line has a metric that this page knows, such as ${list(known)}. ` +
          (there.length ? `Its first line has ${list(there)}. ` : "") +
          "It reads the names of ppo_lib, which are those of TRL's PPO: rename yours to them."
      );
    }
    if (runs > 1) notes.push(`It holds ${runs} runs, one behind the other: this is the last.`);
    if (lost) notes.push(`${many(lost, "number is", "numbers are")} NaN, infinite or no number: they are left out.`);
    const updates = rows.filter((row) => Object.keys(row).some((name) => own.has(name) && !name.startsWith("eval/")));
    if (!updates.length) throw new Error("It has held-out evaluations alone, and no update yet.");
    updates.forEach(derive);
    return { rows, updates, notes, fromFirst: [1, undefined].includes(updates[0].update) };
  }

  // What the rules ask for and no run logs.
  function derive(row, at, rows) {
    row.gap = row["objective/rlhf_reward"] - row["objective/scores"] - row["objective/non_score_reward"];
    row.off = Math.abs(row["val/ratio"] - 1);
    const other = at ? rows[at - 1] : rows[1] || {};
    const responses = row.update ? row.episode / row.update : Math.abs(row.episode - other.episode);
    row.ended = row["val/num_eos_tokens"] / responses;
  }

  const values = (run, metric) => finite(run.rows.map((row) => row[metric]));

  // The number that a condition compares with its bound; none where the log lacks it.
  function measured(run, condition) {
    const { metric, phase, size, per, least: needed } = condition;
    if (phase === "in the first update" && !run.fromFirst) return undefined;
    const curve = values(run, metric);
    if (curve.length < needed) return undefined;
    const value = PHASES[phase](size ? curve.map(Math.abs) : curve);
    const unit = per ? measured(run, { ...per, least: needed }) : 1;
    return unit === 0 ? undefined : value / unit;
  }

  // The rules that hold, with their numbers, and those that the log cannot answer.
  function judge(run, rules) {
    const found = [];
    const open = [];
    for (const rule of rules) {
      const numbers = rule.when.map((condition) => measured(run, condition));
      const holds = rule.when.every(({ side, bound }, at) =>
        side === "above" ? numbers[at] > bound : numbers[at] < bound
      );
      if (!numbers.every(Number.isFinite)) open.push(rule);
      else if (holds) found.push({ rule, numbers });
    }
    return { found, open };
  }

  return { judge, last, many, read, values };
})();
