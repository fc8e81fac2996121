// A ranking is a list of tiers, best first; each tier lists slots. Every function returns a new ranking.

export const tierOf = (tiers, slot) => tiers.findIndex((tier) => tier.includes(slot));

// Rank as in sports: two firsts are followed by a third.
export function rankOf(tiers, slot) {
  let above = 0;
  for (const tier of tiers) {
    if (tier.includes(slot)) return above + 1;
    above += tier.length;
  }
  return above + 1;
}

export const tiedWith = (tiers, slot) => tiers[tierOf(tiers, slot)].filter((other) => other !== slot);

const without = (tiers, slot) => tiers.map((tier) => tier.filter((other) => other !== slot));
const tidy = (tiers) => tiers.filter((tier) => tier.length).map((tier) => [...tier].sort((a, b) => a - b));

// A new tier before the one at `index` (counted in the ranking as given).
export function placeBefore(tiers, slot, index) {
  const rest = without(tiers, slot);
  rest.splice(index, 0, [slot]);
  return tidy(rest);
}

export function joinTier(tiers, slot, index) {
  const rest = without(tiers, slot);
  rest[index] = [...rest[index], slot];
  return tidy(rest);
}

export function moveUp(tiers, slot) {
  const at = tierOf(tiers, slot);
  if (tiers[at].length > 1) return placeBefore(tiers, slot, at);
  return at === 0 ? tiers : placeBefore(tiers, slot, at - 1);
}

export function moveDown(tiers, slot) {
  const at = tierOf(tiers, slot);
  if (tiers[at].length > 1) return placeBefore(tiers, slot, at + 1);
  return at === tiers.length - 1 ? tiers : placeBefore(tiers, slot, at + 2);
}

// Tie with the tier above (the top one with the next); a tied slot leaves its tier downwards.
export function toggleTie(tiers, slot) {
  const at = tierOf(tiers, slot);
  if (tiers[at].length > 1) return placeBefore(tiers, slot, at + 1);
  const into = at > 0 ? at - 1 : 1;
  return into < tiers.length ? joinTier(tiers, slot, into) : tiers;
}

export const startOrder = (count) => Array.from({ length: count }, (_, slot) => [slot]);
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
