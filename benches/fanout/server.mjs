// The fan-out of live transcripts by hand, with Node's usual WebSocket server: what an app has before it has ringfence. It speaks as
// much of ringfence's contract as the load needs. It checks no token, keeps nothing on record and resumes nothing.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

/** Calls by their conversation: how much was said, and who follows. */
const calls = new Map();

function callOf(conversation) {
  let call = calls.get(conversation);
  if (!call) calls.set(conversation, (call = { last: 0, followers: new Set() }));
  return call;
}

let lastId = 0;

function say({ conversation_id, speaker, message, timestamp }) {
  const call = callOf(conversation_id);
  call.last += 1;
  lastId += 1;
  const text = JSON.stringify({
    type: "transcription",
    conversation_id,
    call_sid: null,
    transcription_id: lastId,
    sequence_number: call.last,
    speaker_type: speaker,
    message_text: message,
    timestamp,
  });
  for (const socket of call.followers) socket.send(text);
  return { status: "success", message: "Transcription stored", transcription_id: lastId, sequence_number: call.last };
}

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const answer = JSON.stringify(say(JSON.parse(Buffer.concat(chunks).toString())));
    response.writeHead(201, { "content-type": "application/json", "content-length": Buffer.byteLength(answer) });
    response.end(answer);
  });
});

new WebSocketServer({ server }).on("connection", (socket) => {
  socket.on("message", (text) => {
    const { subscribe } = JSON.parse(text.toString());
    const { followers } = callOf(subscribe);
    followers.add(socket);
    socket.on("close", () => followers.delete(socket));
    socket.send(JSON.stringify({ type: "subscription_confirmed", identifier: subscribe }));
  });
});

server.listen(0, "127.0.0.1", () => {
  const place = `127.0.0.1:${server.address().port}`;
  console.log(JSON.stringify({ webhooks: place, client: place }));
});
