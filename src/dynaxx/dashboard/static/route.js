/* What is shown stands in the address after the #, so that it can be kept, sent and gone back to: #/run/3/spectrum?step=100 */
export function current() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path ? path.split("/").map(decodeURIComponent) : ["runs"], params: new URLSearchParams(query ?? "") };
}

export function link(parts, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value !== undefined && value !== null && value !== "") query.set(name, value);
  return `#/${parts.map(encodeURIComponent).join("/")}${query.size ? `?${query}` : ""}`;
}

/* Changes what the address says of the page that is shown, without leaving it. */
export function remember(changes) {
  const { parts, params } = current();
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined || value === null || value === "") params.delete(name);
    else params.set(name, value);
  }
  history.replaceState(null, "", link(parts, Object.fromEntries(params)));
}
