package packet

import "encoding/binary"

// SYNChallenge makes of a SYN the SYN-ACK with these numbers, without options or data and with a window of 0: one that the
// client is to refuse. mem[start:] begins with the frame that m was parsed from; Answerable has allowed the answer. The new frame
// begins at newStart, without headroom, and is newLen bytes long, never longer than the SYN without its padding.
func SYNChallenge(mem []byte, start int, m *Meta, seq, ack uint32) (newStart, newLen int) {
	return answerBare(mem, start, m, seq, ack, uint8(SYN)|tcpACK)
}

// SYNSeq returns the sequence number of a SYN. frame was parsed into m, which has SYN among its Flags.
func SYNSeq(frame []byte, m *Meta) uint32 { return binary.BigEndian.Uint32(frame[m.L4+4:]) }

// RSTSeq returns the sequence number of a reset: of one that answers an acknowledgement, the number that was acknowledged. frame
// was parsed into m, which has RST among its Flags.
func RSTSeq(frame []byte, m *Meta) uint32 { return binary.BigEndian.Uint32(frame[m.L4+4:]) }
