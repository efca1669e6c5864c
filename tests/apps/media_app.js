// Media Streams, as Twilio's and OpenAI's examples have it: the app names the socket by the host that it was called at.
const http = require('http');
const { WebSocketServer } = require('ws');

const server = http.createServer((req, res) => {
  res.setHeader('content-type', 'text/xml');
  res.end(`<Response><Connect><Stream url="wss://${req.headers.host}/media-stream"/></Connect></Response>`);
});
const sockets = new WebSocketServer({ server, path: '/media-stream' });
sockets.on('connection', (socket, req) => {
  socket.send(JSON.stringify({ host: req.headers.host, proto: req.headers['x-forwarded-proto'] }));
  socket.on('message', (message) => socket.send(message.toString()));
});
server.listen(process.env.PORT, '127.0.0.1');
