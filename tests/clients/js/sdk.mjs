// Call every method of the official JavaScript clients; write the results to stdout as JSON.
// Arguments: the endpoint of DstackGuest, that of Tappd; each a socket's path, a URL, or "" for the
// one that the environment names.
import { createHash } from 'node:crypto';
import { DstackClient, TappdClient } from '@phala/dstack-sdk';
import { toKeypairSecure } from '@phala/dstack-sdk/solana';
import { toViemAccountSecure } from '@phala/dstack-sdk/viem';

console.warn = () => {}; // the old client warns of its deprecation

const hex = (bytes) => Buffer.from(bytes).toString('hex');
const keyOf = ({ key, signature_chain }) => ({ key: hex(key), signature_chain: signature_chain.map(hex) });
const quoteOf = (answer) => ({ ...answer, replayRtmrs: answer.replayRtmrs() });

// Return the names of the methods of a client that were not called.
function watched(client) {
  const called = new Set();
  const names = [];
  for (let found = client; found !== Object.prototype; found = Object.getPrototypeOf(found)) {
    names.push(...Object.getOwnPropertyNames(found).filter((name) => typeof client[name] === 'function'));
  }
  const get = (target, name, receiver) => called.add(name) && Reflect.get(target, name, receiver);
  const uncalled = () => names.filter((name) => name !== 'constructor' && !called.has(name));
  return [new Proxy(client, { get }), uncalled];
}

// Return what a call returns; undefined if an old release lacks the method.
function attempt(call) {
  return call().catch((error) => {
    if (process.env.ATTESTKIT_OLD_CLIENT && error instanceof TypeError) return undefined;
    throw error;
  });
}

async function sign(client) {
  const digest = createHash('sha256').update('text').digest();
  const signatures = {};
  for (const algorithm of ['ed25519', 'secp256k1', 'secp256k1_prehashed']) {
    const { signature, signature_chain, public_key } = await client.sign(algorithm, digest);
    const good = await client.verify(algorithm, digest, signature, public_key);
    const bad = await client.verify(algorithm, Buffer.alloc(32), signature, public_key);
    signatures[algorithm] = {
      signature: hex(signature),
      chain: signature_chain.map(hex),
      public_key: hex(public_key),
      good: good.valid,
      bad: bad.valid,
    };
  }
  return signatures;
}

async function dstack(client) {
  const found = { before: (await client.info()).tcb_info.rtmr3 };
  found.emitted = (await client.emitEvent('from-javascript', Buffer.from('deadbeef', 'hex'))) ?? null;
  found.quote = quoteOf(await client.getQuote('hello'));
  found.attestation = await attempt(async () => (await client.attest('hello')).attestation);
  found.info = await client.info();
  found.version = await attempt(async () => await client.version());
  found.reachable = await client.isReachable();
  found.keys = { 'my/key/path secp256k1': keyOf(await client.getKey('my/key/path', 'signing')) };
  if (found.version) found.keys['my/key/path ed25519'] = keyOf(await client.getKey('my/key/path', 'signing', 'ed25519'));
  const tls = await client.getTlsKey({
    subject: 'example.com',
    altNames: ['www.example.com'],
    usageRaTls: true,
    usageServerAuth: true,
    usageClientAuth: true,
    notBefore: 1700000000,
    notAfter: 1800000000,
    withAppInfo: true,
  });
  found.tls = { ...tls, length: tls.asUint8Array().length };
  found.signatures = await attempt(() => sign(client));
  found.ethereum = toViemAccountSecure(await client.getKey('eth/test', 'wallet')).address;
  // Releases without a choice of algorithms ignore it: the key has the same bytes.
  const pair = toKeypairSecure(await client.getKey('sol/test', 'wallet', 'ed25519'));
  found.solana = { secret: hex(pair.secretKey), address: pair.publicKey.toBase58() };
  found.refused = await client.getQuote('').then(() => null, (error) => error.message);
  return found;
}

// Deprecated methods of the newer client.
async function old(client) {
  return {
    quote: quoteOf(await client.tdxQuote('hello', 'raw')),
    refused: await client.deriveKey('my/path').then(() => null, (error) => error.message),
  };
}

async function tappd(client) {
  const { key, certificate_chain } = await client.deriveKey('my/path', 'subject', ['alt.example.com']);
  return {
    key,
    again: (await client.deriveKey('my/path')).key,
    certificates: certificate_chain.length,
    raw: quoteOf(await client.tdxQuote('hello', 'raw')),
    hashed: quoteOf(await client.tdxQuote('hello', 'sha256')),
    plain: quoteOf(await client.tdxQuote('hello')),
    reachable: await client.isReachable(),
    info: (await client.info()).tcb_info.mrtd,
    secret: hex((await client.getKey('my/path', 'signing')).key),
    inherited: await dstack(client),
  };
}

const [, , dstackEndpoint, tappdEndpoint] = process.argv;
const [newer, uncalledOfNewer] = watched(new DstackClient(dstackEndpoint || undefined));
const [older, uncalledOfOlder] = watched(new TappdClient(tappdEndpoint || undefined));
process.stdout.write(
  JSON.stringify({
    dstack: await dstack(newer),
    old: await old(newer),
    tappd: await tappd(older),
    uncalled: [...uncalledOfNewer(), ...uncalledOfOlder()],
  }),
);
