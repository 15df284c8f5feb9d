// Fetches collateral with @phala/dcap-qvl and verifies with it. Reads {url, quote (hex), root (hex of
// the DER), now (Unix seconds)} on stdin, writes {collateral, status} on stdout.

import { readFileSync } from "node:fs";
import dcapQvl from "@phala/dcap-qvl";

const { url, quote, root, now } = JSON.parse(readFileSync(0, "utf8"));
const raw = Buffer.from(quote, "hex");
const collateral = await dcapQvl.getCollateral(url, raw);
const verifier = dcapQvl.QuoteVerifier.newWithRootCa(Buffer.from(root, "hex"));
const { status } = verifier.verify(raw, collateral, now);
process.stdout.write(JSON.stringify({ collateral, status }));
