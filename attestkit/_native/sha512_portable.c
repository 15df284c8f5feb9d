/* SHA-512 rounds in plain C, for every machine. */
#include "sha512_rounds.inc"

void ak_sha512_portable(uint64_t state[8], uint64_t w[16])
{
    sha512_rounds(state, w);
}
