// Verify messages attest.Attestation with go-tpm, the library with which go-tpm-tools reads them:
// signature, nonce and PCR values of every quote, by the key of the message.
//
// Input: a JSON array of cases. Output: a JSON array of errors, empty if the message is accepted.
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"

	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/protobuf/encoding/protowire"
)

type testCase struct {
	Message []byte
	Nonce   []byte
}

// Contents of fields by number; numbers are in 8 bytes.
type fields map[protowire.Number][][]byte

func parse(message []byte) (fields, error) {
	found := fields{}
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		message = message[size:]
		var content []byte
		switch kind {
		case protowire.VarintType:
			var value uint64
			value, size = protowire.ConsumeVarint(message)
			content = protowire.AppendFixed64(nil, value)
		case protowire.BytesType:
			content, size = protowire.ConsumeBytes(message)
		default:
			return nil, fmt.Errorf("field %d: unexpected wire type %d", number, kind)
		}
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		message = message[size:]
		found[number] = append(found[number], content)
	}
	return found, nil
}

func (known fields) one(number protowire.Number) []byte {
	if len(known[number]) == 0 {
		return nil
	}
	return known[number][0]
}

func (known fields) number(number protowire.Number) uint64 {
	value, _ := protowire.ConsumeFixed64(known.one(number))
	return value
}

func readPcrs(message []byte) (tpm2.Algorithm, map[int][]byte, error) {
	pcrs, err := parse(message)
	if err != nil {
		return 0, nil, err
	}
	values := map[int][]byte{}
	for _, entry := range pcrs[2] {
		pair, err := parse(entry)
		if err != nil {
			return 0, nil, err
		}
		values[int(pair.number(1))] = pair.one(2)
	}
	return tpm2.Algorithm(pcrs.number(1)), values, nil
}

func verifySignature(key crypto.PublicKey, signature *tpm2.Signature, message []byte) (crypto.Hash, error) {
	var algorithm tpm2.Algorithm
	switch {
	case signature.RSA != nil:
		algorithm = signature.RSA.HashAlg
	case signature.ECC != nil:
		algorithm = signature.ECC.HashAlg
	default:
		return 0, fmt.Errorf("signature of another kind")
	}
	hash, err := algorithm.Hash()
	if err != nil {
		return 0, err
	}
	hasher := hash.New()
	hasher.Write(message)
	digest := hasher.Sum(nil)
	switch key := key.(type) {
	case *rsa.PublicKey:
		if signature.Alg != tpm2.AlgRSASSA {
			return 0, fmt.Errorf("signature by an RSA key is no RSASSA")
		}
		return hash, rsa.VerifyPKCS1v15(key, hash, digest, signature.RSA.Signature)
	case *ecdsa.PublicKey:
		if signature.Alg != tpm2.AlgECDSA || !ecdsa.Verify(key, digest, signature.ECC.R, signature.ECC.S) {
			return 0, fmt.Errorf("invalid ECDSA signature")
		}
		return hash, nil
	}
	return 0, fmt.Errorf("key of another kind")
}

func verifyQuote(key crypto.PublicKey, message []byte, nonce []byte) error {
	quote, err := parse(message)
	if err != nil {
		return err
	}
	signature, err := tpm2.DecodeSignature(bytes.NewBuffer(quote.one(2)))
	if err != nil {
		return err
	}
	hash, err := verifySignature(key, signature, quote.one(1))
	if err != nil {
		return err
	}
	attested, err := tpm2.DecodeAttestationData(quote.one(1))
	if err != nil {
		return err
	}
	if attested.Type != tpm2.TagAttestQuote || !bytes.Equal(attested.ExtraData, nonce) {
		return fmt.Errorf("no quote over the nonce")
	}
	bank, values, err := readPcrs(quote.one(3))
	if err != nil {
		return err
	}
	selection := attested.AttestedQuoteInfo.PCRSelection
	if selection.Hash != bank || len(selection.PCRs) != len(values) {
		return fmt.Errorf("other PCRs than selected")
	}
	hasher := hash.New()
	for _, index := range selection.PCRs {
		hasher.Write(values[index])
	}
	if !bytes.Equal(hasher.Sum(nil), attested.AttestedQuoteInfo.PCRDigest) {
		return fmt.Errorf("other values of PCRs")
	}
	return nil
}

func (one testCase) verify() error {
	message, err := parse(one.Message)
	if err != nil {
		return err
	}
	public, err := tpm2.DecodePublic(message.one(1))
	if err != nil {
		return err
	}
	key, err := public.Key()
	if err != nil {
		return err
	}
	if len(message[2]) == 0 {
		return fmt.Errorf("no quote")
	}
	for _, quote := range message[2] {
		if err := verifyQuote(key, quote, one.Nonce); err != nil {
			return err
		}
	}
	return nil
}
