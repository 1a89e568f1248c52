/* Questions to this server. An answer that has not changed is not sent again. */
const kept = new Map();
const MOST = 400;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/* -> { data, changed } */
export async function ask(path, params = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") query.append(name, one);
    }
  }
  const address = `api/${path}${query.size ? `?${query}` : ""}`, before = kept.get(address);
  const answer = await fetch(address, { signal, headers: before ? { "If-None-Match": before.tag } : {} });
  if (answer.status === 304 && before) return { data: before.data, changed: false };
  const data = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Refused(data.error ?? `the server answered ${answer.status}`, answer.status);
  kept.delete(address);
  kept.set(address, { tag: answer.headers.get("etag") ?? "", data });
  if (kept.size > MOST) kept.delete(kept.keys().next().value);
  return { data, changed: true };
}
