// The vote in the making, as the server takes it.

import { startOrder } from "./tiers.js";

export const emptyBallot = (count) => ({
  tiers: startOrder(count), strength: null, all_bad: false, rationale: "", ratings: {}, flags: [], edits: {},
});

// A draft is untrusted too: whatever does not fit the task is left out.
export function ballotFrom(draft, count, questions) {
  const ballot = emptyBallot(count);
  if (!draft || typeof draft !== "object") return ballot;
  const flat = Array.isArray(draft.tiers) ? draft.tiers.flat() : [];
  if (flat.length === count && new Set(flat).size === count && flat.every((s) => Number.isInteger(s) && s >= 0 && s < count)) {
    ballot.tiers = draft.tiers.filter((tier) => tier.length);
  }
  if (Number.isInteger(draft.strength) && draft.strength < questions.strengths) ballot.strength = draft.strength;
  ballot.all_bad = draft.all_bad === true;
  if (typeof draft.rationale === "string") ballot.rationale = draft.rationale;
  if (draft.ratings && typeof draft.ratings === "object") ballot.ratings = structuredClone(draft.ratings);
  if (Array.isArray(draft.flags)) ballot.flags = draft.flags.filter((f) => Array.isArray(f) && questions.flags.includes(f[1]));
  if (questions.edits && draft.edits && typeof draft.edits === "object") ballot.edits = { ...draft.edits };
  return ballot;
}

// The first words of a response, for its chip.
export function snippet(response) {
  const words = new DOMParser().parseFromString(response.html, "text/html").body.textContent;
  return words.replace(/\s+/g, " ").trim().slice(0, 60);
}
