// Call every method of the official JavaScript clients; the answers go to stdout as one JSON object,
// in the form that ask_dstack_sdk.py writes. Arguments: the endpoint of DstackGuest, that of Tappd;
// on stdin what the helper functions are called with. It is copied beside the node_modules that has
// the release in question, whose older ones lack some methods.
import { readFileSync } from 'node:fs';
import { DstackClient, TappdClient } from '@phala/dstack-sdk';
import { encryptEnvVars } from '@phala/dstack-sdk/encrypt-env-vars';
import { getComposeHash } from '@phala/dstack-sdk/get-compose-hash';
import { toKeypairSecure } from '@phala/dstack-sdk/solana';
import * as signed from '@phala/dstack-sdk/verify-env-encrypt-public-key';
import { toViemAccountSecure } from '@phala/dstack-sdk/viem';

console.warn = () => {}; // the old client says with every call that it is old

const REPORT_DATA = 'hello';
const DIGEST = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const ALGORITHMS = ['ed25519', 'secp256k1', 'secp256k1_prehashed'];
const hex = (bytes) => Buffer.from(bytes).toString('hex');
const keyOf = ({ key, signature_chain }) => ({ key: hex(key), chain: signature_chain.map(hex) });
const quoteOf = (answer) => ({
  quote: answer.quote,
  event_log: answer.event_log,
  replayed: answer.replayRtmrs(),
});

// By the call's name: the method without which there is no such call, and how it is made.
const CALLS = {
  IsReachable: ['isReachable', (client) => client.isReachable()],
  Info: [
    'info',
    async (client) => {
      const { app_id, compose_hash, tcb_info } = await client.info();
      return { app_id, compose_hash, app_compose: tcb_info.app_compose, mrtd: tcb_info.mrtd };
    },
  ],
  Version: ['version', async (client) => (await client.version()).version],
  GetKey: [
    'getKey',
    async (client) => {
      const found = { secp256k1: keyOf(await client.getKey('my/key/path', 'signing')) };
      // The older clients take no algorithm, and have no version() either.
      if (client.version) {
        found.ed25519 = keyOf(await client.getKey('my/key/path', 'signing', 'ed25519'));
      }
      return found;
    },
  ],
  GetQuote: ['getQuote', async (client) => quoteOf(await client.getQuote(REPORT_DATA))],
  'too long': [
    'getQuote',
    (client) => client.getQuote(Buffer.alloc(65)).then(() => '', (error) => error.name),
  ],
  Attest: ['attest', async (client) => hex(Buffer.from((await client.attest(REPORT_DATA)).attestation, 'hex'))],
  EmitEvent: [
    'emitEvent',
    async (client) => {
      const before = (await client.getQuote(REPORT_DATA)).replayRtmrs();
      await client.emitEvent('matrix', Buffer.from('dead', 'hex'));
      const after = await client.getQuote(REPORT_DATA);
      const { event, event_payload: payload } = JSON.parse(after.event_log).at(-1);
      const moved = [0, 1, 2, 3].filter((index) => after.replayRtmrs()[index] !== before[index]);
      return { moved, event, payload };
    },
  ],
  GetTlsKey: [
    'getTlsKey',
    async (client) => {
      const newer = { notBefore: 1700000000, notAfter: 1800000000, withAppInfo: true };
      const { certificate_chain: chain } = await client.getTlsKey({
        subject: 'example.com',
        altNames: ['www.example.com'],
        usageRaTls: true,
        usageClientAuth: true,
        ...(client.version ? newer : {}),
      });
      return { chain, not_after: client.version ? newer.notAfter : null };
    },
  ],
  Sign: [
    'sign',
    async (client) => {
      const found = {};
      for (const algorithm of ALGORITHMS) {
        const { signature, signature_chain, public_key } = await client.sign(algorithm, DIGEST);
        found[algorithm] = {
          signature: hex(signature),
          chain: signature_chain.map(hex),
          public_key: hex(public_key),
        };
      }
      return found;
    },
  ],
  Verify: [
    'verify',
    async (client) => {
      const found = {};
      for (const algorithm of ALGORITHMS) {
        const { signature, public_key } = await client.sign(algorithm, DIGEST);
        const good = await client.verify(algorithm, DIGEST, signature, public_key);
        const bad = await client.verify(algorithm, Buffer.alloc(32), signature, public_key);
        found[algorithm] = [good.valid, bad.valid];
      }
      return found;
    },
  ],
  DeriveKey: [
    'deriveKey',
    async (client) => {
      const { key, certificate_chain: chain } = await client.deriveKey('my/path', 'subject', ['alt.example.com']);
      return { key, again: (await client.deriveKey('my/path')).key, chain };
    },
  ],
  TdxQuote: [
    'tdxQuote',
    async (client) => ({
      raw: quoteOf(await client.tdxQuote(REPORT_DATA, 'raw')),
      sha256: quoteOf(await client.tdxQuote(REPORT_DATA, 'sha256')),
    }),
  ],
};
// What DstackClient has of these asks nobody, or is another call: see tests/clients/js/sdk.mjs.
const OLD = ['DeriveKey', 'TdxQuote'];

function methods(client) {
  const names = [];
  for (let found = client; found !== Object.prototype; found = Object.getPrototypeOf(found)) {
    names.push(...Object.getOwnPropertyNames(found));
  }
  // Its types have `ensure...` as private: getKey and getTlsKey call them.
  const own = (name) => name === 'constructor' || name.startsWith('ensure');
  return names.filter((name) => typeof client[name] === 'function' && !own(name));
}

async function ask(client, left) {
  const called = new Set(left.map((name) => CALLS[name][0]));
  const calls = {};
  for (const [name, [method, call]] of Object.entries(CALLS)) {
    if (!client[method] || left.includes(name)) continue;
    called.add(method);
    calls[name] = await call(client).then(
      (answer) => ({ answer }),
      (error) => ({ raised: String(error) }),
    );
  }
  return { calls, uncalled: methods(client).filter((name) => !called.has(name)) };
}

async function helpOut({ variables, key, public_key, signature, app_id, compose }) {
  const response = { key: Buffer.from(key, 'hex'), signature_chain: [], __name__: 'GetKeyResponse' };
  // In the older ones the function without a time has the shorter name.
  const legacy = signed.verifyEnvEncryptPublicKeyLegacy ?? signed.verifyEnvEncryptPublicKey;
  const answers = {
    encrypt_env_vars: await encryptEnvVars(variables, public_key),
    get_compose_hash: getComposeHash(compose),
    to_account: toViemAccountSecure(response).address,
    to_keypair: hex(toKeypairSecure(response).secretKey),
    verify_env_encrypt_public_key: legacy(
      Buffer.from(public_key, 'hex'),
      Buffer.from(signature, 'hex'),
      app_id,
    ),
  };
  const calls = Object.entries(answers).map(([name, answer]) => [name, { answer }]);
  return { calls: Object.fromEntries(calls), uncalled: [] };
}

const [, , dstack, tappd] = process.argv;
process.stdout.write(
  JSON.stringify({
    DstackClient: await ask(new DstackClient(dstack), OLD),
    TappdClient: await ask(new TappdClient(tappd), []),
    helpers: await helpOut(JSON.parse(readFileSync(0, 'utf8'))),
  }),
);
