//go:build !race

#include "textflag.h"
#include "scan_amd64.h"

// func scanAVX2(words *uint64, a, b, fp uint64) (same, empty uint16)
TEXT ·scanAVX2(SB), NOSPLIT, $0-36
	MOVQ words+0(FP), AX
	MOVQ a+8(FP), BX
	MOVQ b+16(FP), CX
	VPBROADCASTD fp+24(FP), Y0
	LOAD(BX, X1, X2, Y1, Y2)
	LOAD(CX, X3, X4, Y3, Y4)
	VPXOR Y5, Y5, Y5
	EMPTY(Y1, Y2, Y5, Y6, Y7)
	EMPTY(Y3, Y4, Y5, Y7, Y8)
	SAME(Y1, Y2, Y0, Y1)
	SAME(Y3, Y4, Y0, Y3)
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
