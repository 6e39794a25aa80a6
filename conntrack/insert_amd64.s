//go:build !race

#include "textflag.h"
#include "scan_amd64.h"

// The lines of the flow whose hash is at (SI): DX and R10 become the indices of their first words, R9 the fingerprint, and Y0 eight of it.
// BX is the mask of lines, and R12 what mixes fingerprints.
#define LINES \
	MOVQ  (SI), DX       \
	MOVQ  DX, R9         \
	SHRQ  $32, R9        \
	MOVQ  R9, R10        \
	IMULQ R12, R10       \
	SHRQ  $32, R10       \
	ORQ   $1, R10        \
	XORQ  DX, R10        \
	ANDQ  BX, DX         \
	ANDQ  BX, R10        \
	SHLQ  $3, DX         \
	SHLQ  $3, R10        \
	VMOVD R9, X0         \
	VPBROADCASTD X0, Y0

// func placesAVX2(words *uint64, mask uint64, hashes *uint64, n int, at *uint64) (others uint64)
TEXT ·placesAVX2(SB), NOSPLIT, $0-48
	MOVQ words+0(FP), AX
	MOVQ mask+8(FP), BX
	MOVQ hashes+16(FP), SI
	MOVQ at+32(FP), DI
	MOVQ $0x9e3779b97f4a7c15, R12
	VPXOR Y5, Y5, Y5
	XORL CX, CX
	XORL R15, R15

loop:
	LINES
	LOAD(DX, X1, X2, Y1, Y2)
	LOAD(R10, X3, X4, Y3, Y4)
	EMPTY(Y1, Y2, Y5, Y6, Y7)
	EMPTY(Y3, Y4, Y5, Y7, Y8)
	SAME(Y1, Y2, Y0, Y1)
	SAME(Y3, Y4, Y0, Y3)
	VPOR Y1, Y3, Y1
	VPTEST Y1, Y1
	JNZ  other                         // perhaps it has a word, and a fingerprint of 0 is like an empty word
	VMOVMSKPS Y6, R8
	VMOVMSKPS Y7, R11
	POPCNTL R8, R13
	CMPL R13, $2
	JHI  found                         // the home line holds less than six
	POPCNTL R11, R14
	CMPL R13, R14
	JHS  most
	MOVQ R10, DX
	MOVL R11, R8
	JMP  found

most:
	TESTL R8, R8
	JZ   other                         // both lines are full

found:
	MOVL R8, R13                       // the free word nearest after the preferred place
	SHLL $8, R13
	ORL  R13, R8
	ANDL $7, R9
	SHRXL R9, R8, R8
	BSFL R8, R8
	ADDL R9, R8
	ANDL $7, R8
	ADDQ DX, R8
	MOVQ R8, (DI)
	JMP  next

other:
	BTSQ CX, R15

next:
	ADDQ $8, SI
	ADDQ $8, DI
	INCQ CX
	CMPQ CX, n+24(FP)
	JLT  loop
	VZEROUPPER
	MOVQ R15, others+40(FP)
	RET

// func aloneAVX2(words *uint64, mask uint64, hashes *uint64, n int, at *uint64) (others uint64)
TEXT ·aloneAVX2(SB), NOSPLIT, $0-48
	MOVQ words+0(FP), AX
	MOVQ mask+8(FP), BX
	MOVQ hashes+16(FP), SI
	MOVQ at+32(FP), DI
	MOVQ $0x9e3779b97f4a7c15, R12
	XORL CX, CX
	XORL R15, R15

loop:
	LINES
	LOAD(DX, X1, X2, Y1, Y2)
	LOAD(R10, X3, X4, Y3, Y4)
	SAME(Y1, Y2, Y0, Y1)
	SAME(Y3, Y4, Y0, Y3)
	VMOVMSKPS Y1, R8
	VMOVMSKPS Y3, R11
	SHLL $8, R11
	ORL  R11, R8
	MOVQ (DI), R13                     // its bit
	MOVQ R13, R14
	XORQ DX, R14
	CMPQ R14, $8
	JCS  home
	ANDL $7, R13
	LEAL 8(R13), R14

home:
	MOVL $1, R13
	SHLXL R14, R13, R13
	CMPL R8, R13
	JEQ  next
	BTSQ CX, R15

next:
	ADDQ $8, SI
	ADDQ $8, DI
	INCQ CX
	CMPQ CX, n+24(FP)
	JLT  loop
	VZEROUPPER
	MOVQ R15, others+40(FP)
	RET
