package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The one call of grpc.health.v1, in gRPC over HTTP/2: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.

// Codes of gRPC that mean something for a health check.
const (
	grpcOK            = 0
	grpcNotFound      = 5
	grpcUnimplemented = 12
)

// serving are the values of HealthCheckResponse.ServingStatus.
var serving = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// grpc calls grpc.health.v1.Health/Check.
func (p *Prober) grpc(ctx context.Context, t *Target) (outcome, error) {
	var message []byte // HealthCheckRequest: service = 1
	if t.Check.GRPCService != "" {
		message = protowire.AppendTag(message, 1, protowire.BytesType)
		message = protowire.AppendString(message, t.Check.GRPCService)
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...) // 0: not compressed
	req, err := p.request(ctx, t, http.MethodPost, "/grpc.health.v1.Health/Check", bytes.NewReader(body))
	if err != nil {
		return outcome{}, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	if deadline, ok := ctx.Deadline(); ok {
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(max(1, time.Until(deadline).Milliseconds()), 10)+"m")
	}
	conn, err := p.open(ctx, t, "h2")
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	resp, err := speakHTTP2(conn, req)
	if err != nil {
		return outcome{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		return outcome{}, bad(fmt.Sprintf("HTTP %d, and not gRPC", resp.StatusCode))
	}
	const most = 4 << 10 // the message has seven bytes today
	answer, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return outcome{}, after("connected", err)
	}
	if len(answer) == most {
		return outcome{}, bad("the answer is too long for a health check")
	}
	if err := grpcStatus(t, resp); err != nil {
		return outcome{}, err
	}
	status, ok := servingStatus(answer)
	switch {
	case !ok:
		return outcome{}, bad("the answer is not one of grpc.health.v1")
	case status != "SERVING":
		return outcome{}, bad("gRPC " + status)
	}
	return saw("gRPC SERVING"), nil
}

// grpcStatus says what is wrong with a call. An answer without a message has its status among the headers.
func grpcStatus(t *Target, resp *http.Response) error {
	trailer := resp.Trailer
	if trailer.Get("Grpc-Status") == "" {
		trailer = resp.Header
	}
	code, err := strconv.Atoi(trailer.Get("Grpc-Status"))
	switch {
	case err != nil:
		return bad("the answer has no gRPC status")
	case code == grpcNotFound:
		return bad(fmt.Sprintf("the server does not know the service %q (grpc_service)", t.Check.GRPCService))
	case code == grpcUnimplemented:
		return bad("the server has no grpc.health.v1.Health (gRPC UNIMPLEMENTED)")
	case code != grpcOK:
		return bad(fmt.Sprintf("gRPC status %d: %s", code, trailer.Get("Grpc-Message")))
	}
	return nil
}

// servingStatus reads a HealthCheckResponse: status = 1.
func servingStatus(answer []byte) (string, bool) {
	if len(answer) < 5 || answer[0] != 0 || uint32(len(answer)-5) != binary.BigEndian.Uint32(answer[1:]) {
		return "", false
	}
	status := uint64(0)
	for message := answer[5:]; len(message) > 0; {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return "", false
		}
		message = message[n:]
		if number == 1 && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(message)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return "", false
		}
		message = message[n:]
	}
	if status >= uint64(len(serving)) {
		return fmt.Sprintf("status %d", status), true
	}
	return serving[status], true
}
