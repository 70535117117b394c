#!/usr/bin/env bash
# http-proxy-middleware writes a sentence into a stream whose engine was reset, and ends the answer as if it were whole.
#
# http-proxy-middleware 4.2.1, express 5.3.0 (npm), Node 20. An engine sends three events of a chunked answer and is reset, or
# closes the connection, both without a last chunk. The client is Node's own fetch.
# A good guess is a body that breaks off in both, as the head is long sent. Seen: so it is for the close; for the reset there
# follow "Error occurred while trying to proxy", the address that was asked, and a proper end under status 200.
# A reset is what a killed engine's kernel may send, so the crash that a test looks for is the one that passes: readers of lines
# take the sentence for no event, and readers of text count it as words of the model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-fund --no-audit http-proxy-middleware@4.2.1 express@5.3.0
cat >"$work/try.mjs" <<'JS'
import http from 'node:http'
import express from 'express'
import { createProxyMiddleware } from 'http-proxy-middleware'

const listen = (server) => new Promise((resolve) => {
  const listening = server.listen(0, '127.0.0.1', () => resolve(listening.address()))
})
const engine = http.createServer((request, response) => {
  request.resume()
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  let sent = 0
  const timer = setInterval(() => {
    if (sent++ < 3) return response.write('data: {"choices": []}\n\n')
    clearInterval(timer)
    request.url === '/reset' ? request.socket.resetAndDestroy() : request.socket.destroy()
  }, 20)
})
const { port } = await listen(engine)
const proxy = await listen(express().use(createProxyMiddleware({ target: `http://127.0.0.1:${port}` })))
for (const path of ['/close', '/reset']) {
  const answer = await fetch(`http://127.0.0.1:${proxy.port}${path}`, { method: 'POST', body: '{}' })
  let text = ''
  let end = 'whole'
  try {
    for await (const piece of answer.body) text += new TextDecoder().decode(piece)
  } catch {
    end = 'broken off'
  }
  const rest = text.split('\n\n').at(-1).split(':')[0]
  console.log(`${path}: ${answer.status}, ${end}, ${text.split('data: ').length - 1} events, then "${rest}"`)
}
process.exit()
JS
seen=$(node "$work/try.mjs" 2>/dev/null)
expected='/close: 200, broken off, 3 events, then ""
/reset: 200, whole, 3 events, then "Error occurred while trying to proxy"'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
