// Express with Twilio's middleware, as Twilio's guide "Secure your Express app by validating incoming Twilio requests" has it; and
// ElevenLabs' webhook as its guide has it.
const express = require('express');
const twilio = require('twilio');
const { ElevenLabsClient } = require('@elevenlabs/elevenlabs-js');

const app = express();
const options = {};
if (process.env.TRUST_PROXY) app.set('trust proxy', process.env.TRUST_PROXY);
if (process.env.PROTOCOL) options.protocol = process.env.PROTOCOL;
const elevenlabs = new ElevenLabsClient({ apiKey: 'unused' });

app.post('/webhooks/elevenlabs/post-call', express.raw({ type: '*/*' }), async (req, res) => {
  try {
    const signature = req.headers['elevenlabs-signature'];
    await elevenlabs.webhooks.constructEvent(req.body.toString(), signature, process.env.ELEVENLABS_WEBHOOK_SECRET);
    res.json({ received: true });
  } catch (error) {
    res.status(401).send(error.message);
  }
});

app.use(express.urlencoded({ extended: false }), twilio.webhook(options));

app.all('/webhooks/twilio/voice', (req, res) => {
  const response = new twilio.twiml.VoiceResponse();
  response.connect().stream({ url: `wss://${req.headers.host}/media` });
  res.type('text/xml').send(response.toString());
});
app.post('/webhooks/twilio/status', (req, res) => res.sendStatus(204));
app.post('/sms', (req, res) => {
  const response = new twilio.twiml.MessagingResponse();
  response.message(`You said ${req.body.Body} at ${req.protocol}://${req.hostname}`);
  res.type('text/xml').send(response.toString());
});

app.listen(process.env.PORT, '127.0.0.1');
