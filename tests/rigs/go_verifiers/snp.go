// Verify SEV-SNP reports with go-sev-guest: certificates, revocation, policy and TCB.
//
// Input: a JSON array of cases. Output: a JSON array of errors, empty if the report is accepted.
package main

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

// Responses by address.
type responses map[string][]byte

func (known responses) Get(address string) ([]byte, error) {
	body, ok := known[address]
	if !ok {
		return nil, fmt.Errorf("no response to %s", address)
	}
	return body, nil
}

type testCase struct {
	Report       []byte
	Certificates []byte // the host's table
	Product      string
	Ark          []byte
	Ask          []byte
	Asvk         []byte
	Now          int64
	Responses    responses
}

func parse(certificates ...[]byte) ([]*x509.Certificate, error) {
	parsed := []*x509.Certificate{}
	for _, der := range certificates {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, one)
	}
	return parsed, nil
}

func (one testCase) verify() error {
	roots, err := parse(one.Ark, one.Ask, one.Asvk)
	if err != nil {
		return err
	}
	root := trust.AMDRootCertsProduct(one.Product)
	root.ProductCerts = &trust.ProductCerts{Ark: roots[0], Ask: roots[1], Asvk: roots[2]}
	report, err := abi.ReportToProto(one.Report)
	if err != nil {
		return err
	}
	table := new(abi.CertTable)
	if err := table.Unmarshal(one.Certificates); err != nil {
		return err
	}
	attestation := &spb.Attestation{Report: report, CertificateChain: table.Proto()}
	options := &verify.Options{
		CheckRevocations:    true,
		DisableCertFetching: true, // the table has all certificates
		Getter:              one.Responses,
		Now:                 time.Unix(one.Now, 0),
		TrustedRoots:        map[string][]*trust.AMDRootCerts{one.Product: {root}},
	}
	if err := verify.SnpAttestation(attestation, options); err != nil {
		return err
	}
	vmpl := 0
	rules := &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true}, VMPL: &vmpl}
	return validate.SnpAttestation(attestation, rules)
}
