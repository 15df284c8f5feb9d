// Seal and open with JavaScript libraries: read a JSON list of calls on stdin, write the results.
//
// A call is [function, arguments...], with bytes in hex; a result is text, or null if the library
// refused. HPKE is @hpke/core, sealed boxes are libsodium's, environments are the dstack SDK's.

import { readFileSync } from "node:fs";
import { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { encryptEnvVars } from "@phala/dstack-sdk/encrypt-env-vars";
import sodium from "libsodium-wrappers";

const suite = new CipherSuite({
  kem: new DhkemX25519HkdfSha256(),
  kdf: new HkdfSha256(),
  aead: new Aes256Gcm(),
});

// A view with its own buffer, which @hpke/core takes as an ArrayBuffer.
const bytes = (text) => Uint8Array.from(Buffer.from(text, "hex"));
const hex = (data) => Buffer.from(data).toString("hex");
const bits = (text) => bytes(text).buffer;

const functions = {
  async hpkeSeal(publicKey, info, plaintext) {
    const recipientPublicKey = await suite.kem.deserializePublicKey(bits(publicKey));
    const { enc, ct } = await suite.seal({ recipientPublicKey, info: bits(info) }, bits(plaintext));
    return hex(enc) + hex(ct);
  },
  async hpkeOpen(secret, info, enc, ciphertext) {
    const recipientKey = await suite.kem.deserializePrivateKey(bits(secret));
    const params = { recipientKey, info: bits(info), enc: bits(enc) };
    return hex(await suite.open(params, bits(ciphertext)));
  },
  boxSeal: (publicKey, text) => hex(sodium.crypto_box_seal(bytes(text), bytes(publicKey))),
  boxOpen: (publicKey, secret, box) =>
    hex(sodium.crypto_box_seal_open(bytes(box), bytes(publicKey), bytes(secret))),
  encryptEnvVars: (publicKey, variables) => encryptEnvVars(variables, publicKey),
};

async function call([name, ...rest]) {
  try {
    return await functions[name](...rest);
  } catch (error) {
    process.stderr.write(`${name}: ${error}\n`);
    return null;
  }
}

await sodium.ready;
const results = [];
for (const one of JSON.parse(readFileSync(0, "utf8"))) results.push(await call(one));
process.stdout.write(JSON.stringify(results));
