// Verify with @phala/dcap-qvl: read a JSON list of cases on stdin, write a JSON list of results.
//
// A case has quote (hex), collateral (the nine-field object), now (Unix seconds) and root (hex of
// the DER; null is the library's own default, Intel's). A verdict is {status, advisories} or
// {error}.

import { readFileSync } from "node:fs";
import dcapQvl from "@phala/dcap-qvl";

const { QuoteVerifier, verify } = dcapQvl;

function judge({ quote, collateral, now, root }) {
  const raw = Buffer.from(quote, "hex");
  try {
    const report =
      root === null
        ? verify(raw, collateral, now)
        : QuoteVerifier.newWithRootCa(Buffer.from(root, "hex")).verify(raw, collateral, now);
    return { status: report.status, advisories: report.advisory_ids };
  } catch (error) {
    return { error: String(error.message) };
  }
}

const cases = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(cases.map(judge)));
