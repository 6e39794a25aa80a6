#include "textflag.h"

// func prefetch(memory []byte, batch []Desc)
TEXT ·prefetch(SB), NOSPLIT, $0-48
	MOVQ memory_base+0(FP), AX
	MOVQ batch_base+24(FP), SI
	MOVQ batch_len+32(FP), CX
	TESTQ CX, CX
	JZ   done

loop:
	MOVQ (SI), DX             // Desc.Addr
	PREFETCHT0 (AX)(DX*1)
	PREFETCHT0 54(AX)(DX*1)
	ADDQ $16, SI              // the size of a Desc
	DECQ CX
	JNZ  loop

done:
	RET
