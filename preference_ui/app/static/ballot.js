// The vote in the making, as the server takes it.

import { startOrder } from "./tiers.js";

export const emptyBallot = (count) => ({
  tiers: startOrder(count), strength: null, all_bad: false, rationale: "", ratings: {}, flags: [], edits: {},
});

const isSlot = (slot, count) => Number.isInteger(slot) && slot >= 0 && slot < count;

function ratingsFrom(given, count, axes) {
  const kept = {};
  for (const [slot, values] of Object.entries(given ?? {})) {
    if (!isSlot(Number(slot), count)) continue;
    for (const { name, low, high } of axes) {
      const value = values?.[name];
      if (Number.isInteger(value) && value >= low && value <= high) (kept[slot] ??= {})[name] = value;
    }
  }
  return kept;
}

const editsFrom = (given, count) => Object.fromEntries(
  Object.entries(given ?? {}).filter(([slot, text]) => isSlot(Number(slot), count) && typeof text === "string"),
);

// A draft is untrusted, and may be older than the project's questions: whatever does not fit is left out.
export function ballotFrom(draft, count, questions) {
  const ballot = emptyBallot(count);
  if (!draft || typeof draft !== "object") return ballot;
  const flat = Array.isArray(draft.tiers) ? draft.tiers.flat() : [];
  if (flat.length === count && new Set(flat).size === count && flat.every((slot) => isSlot(slot, count))) {
    ballot.tiers = draft.tiers.filter((tier) => tier.length);
  }
  if (isSlot(draft.strength, questions.strengths)) ballot.strength = draft.strength;
  ballot.all_bad = draft.all_bad === true;
  if (typeof draft.rationale === "string") ballot.rationale = draft.rationale;
  ballot.ratings = ratingsFrom(draft.ratings, count, questions.axes);
  if (Array.isArray(draft.flags)) {
    ballot.flags = draft.flags.filter((f) => Array.isArray(f) && questions.flags.includes(f[1]) && (f[0] === null || isSlot(f[0], count)));
  }
  if (questions.edits) ballot.edits = editsFrom(draft.edits, count);
  return ballot;
}

const size = ({ strength, ratings, flags, edits }) => (strength === null || strength === undefined ? 0 : 1)
  + Object.values(ratings ?? {}).reduce((sum, values) => sum + Object.keys(values ?? {}).length, 0)
  + (flags?.length ?? 0) + Object.keys(edits ?? {}).length;

// Whether a draft said more than its ballot does, because the project asks less than it did.
export const isNarrower = (ballot, draft) => Boolean(draft) && size(draft) > size(ballot);

// The first words of a response, for its chip.
export function snippet(response) {
  const words = new DOMParser().parseFromString(response.html, "text/html").body.textContent;
  return words.replace(/\s+/g, " ").trim().slice(0, 60);
}
