#include "textflag.h"

// func Lines(words []uint64, mask uint64, hashes []uint64)
TEXT ·Lines(SB), NOSPLIT, $0-56
	MOVD words_base+0(FP), R0
	MOVD mask+24(FP), R1
	MOVD hashes_base+32(FP), R2
	MOVD hashes_len+40(FP), R3
	CBZ  R3, done

loop:
	MOVD.P 8(R2), R4
	AND  R1, R4, R4
	ADD  R4<<6, R0, R4
	PRFM (R4), PLDL1KEEP
	SUB  $1, R3, R3
	CBNZ R3, loop

done:
	RET
