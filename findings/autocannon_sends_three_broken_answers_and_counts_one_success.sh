#!/usr/bin/env bash
# autocannon makes of three answers that break off one success, no error, and a latency that none of them had.
#
# autocannon 9.0.0 (npm), Node 20. A server sends the head and one event of each answer, and closes the connection 20 ms later
# without the rest, with and without a Content-Length; 30 requests on one connection at a time.
# A good guess is 30 errors, as for a connection that is refused. Seen: no error, reset or time-out, but 10 "2xx", though the
# server has had all 30, and a slowest answer of more than 100 ms: a connection that went is opened again in silence, the next
# answer is read as the rest of the one before, and its time is counted from a request that was long lost.
# A gateway that loses every stream looks like a slow and faultless one, which is the wrong thing to mend.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-fund --no-audit autocannon@9.0.0
cat >"$work/try.mjs" <<'JS'
import http from 'node:http'
import autocannon from 'autocannon'

for (const kind of ['chunked', 'content-length', 'whole']) {
  let had = 0
  const server = http.createServer((request, response) => {
    had++
    request.resume()
    response.writeHead(200, { 'content-type': 'text/event-stream', ...(kind === 'content-length' && { 'content-length': 99 }) })
    response.write('data: {"choices": []}\n\n')
    setTimeout(() => (kind === 'whole' ? response.end() : request.socket.destroy()), 20)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const told = await autocannon({
    url: `http://127.0.0.1:${server.address().port}/v1/chat/completions`, method: 'POST', body: '{}', connections: 1, amount: 30
  })
  console.log(`${kind}: the server had ${had}, 2xx ${told['2xx']}, errors ${told.errors}, resets ${told.resets},`,
    `time-outs ${told.timeouts}, slowest over 100 ms: ${told.latency.max > 100}`)
  server.closeAllConnections()
  server.close()
}
JS
seen=$(node "$work/try.mjs")
expected="chunked: the server had 30, 2xx 10, errors 0, resets 0, time-outs 0, slowest over 100 ms: true
content-length: the server had 30, 2xx 10, errors 0, resets 0, time-outs 0, slowest over 100 ms: true
whole: the server had 30, 2xx 30, errors 0, resets 0, time-outs 0, slowest over 100 ms: false"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
