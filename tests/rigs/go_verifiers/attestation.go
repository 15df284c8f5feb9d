// Verify messages attest.Attestation with go-tpm-tools, whose module has to be downloaded.
//
// Input: a JSON array of cases. Output: a JSON array of errors, empty if the message is accepted.
package main

import (
	"crypto"
	"crypto/x509"

	"github.com/google/go-tpm-tools/proto/attest"
	"github.com/google/go-tpm-tools/server"
	"google.golang.org/protobuf/proto"
)

type testCase struct {
	Message []byte
	Nonce   []byte
	Key     []byte // SubjectPublicKeyInfo of the trusted attestation key
}

func (one testCase) verify() error {
	message := new(attest.Attestation)
	if err := proto.Unmarshal(one.Message, message); err != nil {
		return err
	}
	key, err := x509.ParsePKIXPublicKey(one.Key)
	if err != nil {
		return err
	}
	options := server.VerifyOpts{Nonce: one.Nonce, TrustedAKs: []crypto.PublicKey{key}}
	_, err = server.VerifyAttestation(message, options)
	return err
}
