#include "textflag.h"

// func prefetch(memory []byte, batch []Desc)
TEXT ·prefetch(SB), NOSPLIT, $0-48
	MOVD memory_base+0(FP), R0
	MOVD batch_base+24(FP), R1
	MOVD batch_len+32(FP), R2
	CBZ  R2, done

loop:
	MOVD.P 16(R1), R3         // Desc.Addr; 16 is the size of a Desc
	ADD  R0, R3, R3
	PRFM (R3), PLDL1KEEP
	ADD  $54, R3, R3
	PRFM (R3), PLDL1KEEP
	SUB  $1, R2, R2
	CBNZ R2, loop

done:
	RET
