//go:build !race

#include "textflag.h"

// Words 0, 1, 4 and 5 of a line, and the others, so that the upper halves of all of them come out in order below.
#define LOAD(line, first, second, wide1, wide2) \
	VMOVUPS (AX)(line*8), first                  \
	VINSERTF128 $1, 32(AX)(line*8), wide1, wide1 \
	VMOVUPS 16(AX)(line*8), second               \
	VINSERTF128 $1, 48(AX)(line*8), wide2, wide2

// func scanAVX2(words *uint64, a, b, fp uint64) (same, empty uint16)
TEXT ·scanAVX2(SB), NOSPLIT, $0-36
	MOVQ words+0(FP), AX
	MOVQ a+8(FP), BX
	MOVQ b+16(FP), CX
	VPBROADCASTD fp+24(FP), Y0
	LOAD(BX, X1, X2, Y1, Y2)
	LOAD(CX, X3, X4, Y3, Y4)
	VPXOR Y5, Y5, Y5
	VPCMPEQQ Y5, Y1, Y6                // empty words
	VPCMPEQQ Y5, Y2, Y7
	VSHUFPS $0xdd, Y7, Y6, Y6
	VPCMPEQQ Y5, Y3, Y7
	VPCMPEQQ Y5, Y4, Y8
	VSHUFPS $0xdd, Y8, Y7, Y7
	VSHUFPS $0xdd, Y2, Y1, Y1          // upper halves
	VPCMPEQD Y0, Y1, Y1
	VSHUFPS $0xdd, Y4, Y3, Y3
	VPCMPEQD Y0, Y3, Y3
	VMOVMSKPS Y6, R8
	VMOVMSKPS Y7, R9
	VMOVMSKPS Y1, R10
	VMOVMSKPS Y3, R11
	VZEROUPPER
	SHLL $8, R9
	ORL  R9, R8
	SHLL $8, R11
	ORL  R11, R10
	ANDNL R10, R8, R10                 // an empty word has no fingerprint
	MOVW R10, same+32(FP)
	MOVW R8, empty+34(FP)
	RET
