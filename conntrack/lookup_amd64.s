//go:build !race

#include "textflag.h"

// The places of a line's words in the order in which their upper halves are compared, four bits each; see below.
#define order $0x76325410

// func lookupHomeAVX2(words *uint64, mask uint64, hashes *uint64, n int, index *int, found *Word) (missing uint64)
TEXT ·lookupHomeAVX2(SB), NOSPLIT, $0-56
	MOVQ words+0(FP), AX
	MOVQ mask+8(FP), BX
	MOVQ hashes+16(FP), SI
	MOVQ n+24(FP), CX
	MOVQ index+32(FP), DI
	MOVQ found+40(FP), R8
	XORL R12, R12                      // flows without a word: the last one's bit is the highest

loop:
	MOVQ (SI), DX
	MOVQ DX, R9
	SHRQ $32, R9                       // the fingerprint
	ANDQ BX, DX
	SHLQ $3, DX                        // index of the line's first word
	VMOVD R9, X0
	VPBROADCASTD X0, Y0
	VMOVUPS (AX)(DX*8), Y1
	VSHUFPS $0xdd, 32(AX)(DX*8), Y1, Y1 // upper halves of words 0, 1, 4, 5, 2, 3, 6, 7
	VPCMPEQD Y0, Y1, Y1
	VMOVMSKPS Y1, R10
	XORL R13, R13                      // no word

next:
	TESTL R10, R10
	JZ   store
	BSFL R10, R11
	SHLL $2, R11
	MOVL order, R14
	SHRXL R11, R14, R14
	ANDL $7, R14
	ADDQ DX, R14
	MOVQ (AX)(R14*8), R13              // the one read that counts: of all eight bytes at once
	MOVQ R13, R15
	SHRQ $32, R15
	CMPQ R15, R9
	JNE  other
	TESTQ R13, R13
	JNZ  hit

other: // an empty word, of a flow whose fingerprint is 0, or one that has changed since
	XORL R13, R13
	LEAL -1(R10), R15
	ANDL R15, R10
	JMP  next

hit:
	MOVQ R14, (DI)

store:
	MOVQ R13, (R8)
	CMPQ R13, $1                       // a carry if it is zero
	RCRQ $1, R12
	ADDQ $8, SI
	ADDQ $8, DI
	ADDQ $8, R8
	DECQ CX
	JNZ  loop

	MOVQ n+24(FP), CX
	NEGQ CX
	SHRQ CX, R12                       // now the first one's bit is the lowest
	MOVQ R12, missing+48(FP)
	VZEROUPPER
	RET
