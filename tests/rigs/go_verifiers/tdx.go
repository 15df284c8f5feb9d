// Verify TDX quotes with go-tdx-guest: collateral, revocation, and fixed bits.
//
// Input: a JSON array of cases. Output: a JSON array of errors, empty if the quote is accepted.
package main

import (
	"crypto/x509"
	"fmt"
	"net/textproto"
	"net/url"
	"time"

	"github.com/google/go-tdx-guest/validate"
	"github.com/google/go-tdx-guest/verify"
)

type response struct {
	Headers map[string]string
	Body    []byte
}

// Responses by path and query; the host is Intel's or that of the simulated CRLs.
type responses map[string]response

func (known responses) Get(address string) (map[string][]string, []byte, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	found, ok := known[parsed.RequestURI()]
	if !ok {
		return nil, nil, fmt.Errorf("no response to %s", address)
	}
	headers := map[string][]string{}
	for name, value := range found.Headers {
		headers[textproto.CanonicalMIMEHeaderKey(name)] = []string{value}
	}
	return headers, found.Body, nil
}

type testCase struct {
	Quote     []byte
	Root      []byte
	Now       int64
	Responses responses
	// Expected values, which Google's rules do not imply.
	VendorID   []byte
	Attributes []byte
}

func (one testCase) verify() error {
	root, err := x509.ParseCertificate(one.Root)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	options := &verify.Options{
		CheckRevocations: true,
		GetCollateral:    true,
		Getter:           one.Responses,
		Now:              time.Unix(one.Now, 0),
		TrustedRoots:     roots,
	}
	if err := verify.RawTdxQuote(one.Quote, options); err != nil {
		return err
	}
	rules := &validate.Options{
		HeaderOptions:      validate.HeaderOptions{QeVendorID: one.VendorID},
		TdQuoteBodyOptions: validate.TdQuoteBodyOptions{TdAttributes: one.Attributes},
	}
	return validate.RawTdxQuote(one.Quote, rules)
}
