package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sluice-lb/sluice/internal/config"
)

// serveGRPC runs the gRPC library's server.
func serveGRPC(t *testing.T, h grpc_health_v1.HealthServer, o ...grpc.ServerOption) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(o...)
	if h != nil {
		grpc_health_v1.RegisterHealthServer(s, h)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return netip.MustParseAddrPort(l.Addr().String())
}

// stuck is a health server that answers late or with an error.
type stuck struct {
	grpc_health_v1.UnimplementedHealthServer
	err error
}

func (s stuck) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if s.err == nil {
		<-ctx.Done()
	}
	return nil, s.err
}

func TestGRPC(t *testing.T) {
	p := New(Options{})
	h := health.NewServer()
	for service, s := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"up": grpc_health_v1.HealthCheckResponse_SERVING, "down": grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"unknown": grpc_health_v1.HealthCheckResponse_UNKNOWN, "gone": grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN, "new": 9,
	} {
		h.SetServingStatus(service, s)
	}
	dir := t.TempDir()
	a := newAuthority(t, dir, "ours")
	a.issue("www", "www.example.org", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	secure, err := credentials.NewServerTLSFromFile(dir+"/www.pem", dir+"/www.key")
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(http.NotFoundHandler())
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	t.Cleanup(web.Close)
	fine, overTLS := serveGRPC(t, h), serveGRPC(t, h, grpc.Creds(secure))
	verified := &config.CheckTLS{Verify: true, CAFile: dir + "/ours.pem"}
	for _, c := range []struct {
		name     string
		addr     netip.AddrPort
		check    config.Check
		want     verdict
		evidence string
	}{
		{"the server", fine, config.Check{}, good, "gRPC SERVING"},
		{"a service", fine, config.Check{GRPCService: "up"}, good, "gRPC SERVING"},
		{"not serving", fine, config.Check{GRPCService: "down"}, failing, "gRPC NOT_SERVING"},
		{"unknown", fine, config.Check{GRPCService: "unknown"}, failing, "gRPC UNKNOWN"},
		{"service unknown", fine, config.Check{GRPCService: "gone"}, failing, "gRPC SERVICE_UNKNOWN"},
		{"a status of the future", fine, config.Check{GRPCService: "new"}, failing, "gRPC status 9"},
		{"no such service", fine, config.Check{GRPCService: "typo"}, failing, `does not know the service "typo"`},
		{"no health service", serveGRPC(t, nil), config.Check{}, failing, "UNIMPLEMENTED"},
		{"an error", serveGRPC(t, stuck{err: status.Error(codes.Unavailable, "warming up")}), config.Check{}, failing, "gRPC status 14: warming up"},
		{"slow", serveGRPC(t, stuck{}), config.Check{Timeout: config.Duration(quick)}, failing, ""},
		{"TLS", overTLS, config.Check{Host: "www.example.org", TLS: verified}, good, "gRPC SERVING"},
		{"TLS, another name", overTLS, config.Check{Host: "api.example.org", TLS: verified}, failing, "certificate is for www.example.org, not api.example.org"},
		{"no TLS where there is", overTLS, config.Check{}, failing, ""},
		{"TLS where there is none", fine, config.Check{TLS: verified}, failing, "not TLS"},
		{"HTTP/2, and not gRPC", netip.MustParseAddrPort(web.Listener.Addr().String()), config.Check{}, failing, "HTTP 404, and not gRPC"},
		{"HTTP/1.1", serve(t, answer("HTTP/1.1 400 Bad Request\r\n\r\n")), config.Check{}, failing, "not HTTP/2"},
		{"refused", refusing(t), config.Check{}, failing, "connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Type = config.CheckGRPC
			r := expect(t, p, target(c.addr, c.check), c.want, c.evidence)
			t.Log(r.Evidence)
		})
	}
}

// A message of anybody's is read without harm.
func FuzzServingStatus(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 4, 0x12, 1, 'x', 8})
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, ok := servingStatus(data); ok != (s != "") {
			t.Errorf("%x: %q, %v", data, s, ok)
		}
	})
}
