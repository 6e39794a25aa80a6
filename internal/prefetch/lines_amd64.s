#include "textflag.h"

// func Lines(words []uint64, mask uint64, hashes []uint64)
TEXT ·Lines(SB), NOSPLIT, $0-56
	MOVQ words_base+0(FP), AX
	MOVQ mask+24(FP), BX
	MOVQ hashes_base+32(FP), SI
	MOVQ hashes_len+40(FP), CX
	TESTQ CX, CX
	JZ   done

loop:
	MOVQ (SI), DX
	ANDQ BX, DX
	SHLQ $6, DX
	PREFETCHT0 (AX)(DX*1)
	ADDQ $8, SI
	DECQ CX
	JNZ  loop

done:
	RET
