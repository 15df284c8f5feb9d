// Read cases, a JSON array, and write a JSON array of errors, empty if the evidence is accepted.
package main

import (
	"encoding/json"
	"log"
	"os"
)

func main() {
	var cases []testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		log.Fatal(err)
	}
	texts := []string{}
	for _, one := range cases {
		text := ""
		if err := one.verify(); err != nil {
			text = err.Error()
		}
		texts = append(texts, text)
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		log.Fatal(err)
	}
}
