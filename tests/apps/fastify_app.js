// Fastify: its guide's server with @fastify/formbody, and Twilio's validator over the URL that the request was for.
const fastify = require('fastify');
const twilio = require('twilio');

const app = fastify({ trustProxy: Boolean(process.env.TRUST_PROXY) });
app.register(require('@fastify/formbody'));

app.addHook('preHandler', async (request, reply) => {
  const url = `${process.env.PROTOCOL || request.protocol}://${request.host}${request.url}`;
  const signature = request.headers['x-twilio-signature'] || '';
  if (!twilio.validateRequest(process.env.TWILIO_AUTH_TOKEN, signature, url, request.body || {})) {
    return reply.code(403).send('Forbidden');
  }
});

app.route({
  method: ['GET', 'POST'],
  url: '/webhooks/twilio/voice',
  handler: async (request, reply) => {
    const response = new twilio.twiml.VoiceResponse();
    response.connect().stream({ url: `wss://${request.headers.host}/media` });
    return reply.type('text/xml').send(response.toString());
  },
});
app.post('/webhooks/twilio/status', async (request, reply) => reply.code(204).send());
app.post('/sms', async (request, reply) => {
  const response = new twilio.twiml.MessagingResponse();
  response.message(`You said ${request.body.Body} at ${request.protocol}://${request.host}`);
  return reply.type('text/xml').send(response.toString());
});

app.listen({ port: process.env.PORT, host: '127.0.0.1' });
