//go:build !race

#include "textflag.h"

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
	MOVL 4(SI), R9                     // the fingerprint
	VPBROADCASTD 4(SI), Y0
	MOVQ (SI), DX
	ANDQ BX, DX
	SHLQ $3, DX                        // index of the line's first word
	VMOVUPS (AX)(DX*8), Y1
	VSHUFPS $0xdd, 32(AX)(DX*8), Y1, Y1 // upper halves of words 0, 1, 4, 5, 2, 3, 6, 7
	VPCMPEQD Y0, Y1, Y1
	VPERMQ $0xd8, Y1, Y1               // in the order of the words
	VMOVMSKPS Y1, R10

next:
	TESTL R10, R10
	JZ   miss
	TZCNTL R10, R11
	LEAQ (DX)(R11*1), R14
	MOVQ (AX)(R14*8), R13              // the one read that counts: of all eight bytes at once
	MOVQ R13, R15
	SHRQ $32, R15
	CMPL R15, R9
	JNE  other
	TESTQ R13, R13
	JZ   other
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

other: // an empty word, of a flow whose fingerprint is 0, or one that has changed since
	LEAL -1(R10), R15
	ANDL R15, R10
	JMP  next

miss:
	XORL R13, R13
	JMP  store
