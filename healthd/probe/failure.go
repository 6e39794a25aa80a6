package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// bad is what a backend does wrong, in the words for the operator.
type bad string

func (e bad) Error() string { return string(e) }

// lack is what a probe needs and this node has not, in the words for the operator, with the cure.
type lack string

func (e lack) Error() string { return string(e) }

// stageError is an error after a part of the probe went well, which matters to who reads that no answer came.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.stage + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// after says what had gone well before err.
func after(stage string, err error) error { return &stageError{stage, err} }

// timedOut reports whether err is for want of time.
func timedOut(err error) bool {
	var neterr net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &neterr) && neterr.Timeout()
}

// ended reports whether err is the end of a connection before its time.
func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// isErrno reports whether err comes from a system call.
func isErrno(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// local are the errors of a node that is short of something, whatever the backend does.
var local = map[syscall.Errno]string{
	syscall.EMFILE:        "raise LimitNOFILE= of sluice-healthd",
	syscall.ENFILE:        "raise fs.file-max",
	syscall.ENOBUFS:       "",
	syscall.ENOMEM:        "",
	syscall.EADDRNOTAVAIL: "no free port or no address to send from",
	syscall.EAFNOSUPPORT:  "is IPv6 disabled?",
	syscall.EPERM:         "does a firewall of this node drop it?",
	syscall.EACCES:        "does a firewall or a prohibit route of this node stop it?",
	syscall.EINVAL:        "does a blackhole route of this node drop it?",
}

// failure puts an error into words, and says whether it is this node's. Addresses are left out: a report names the backend anyway.
func failure(err error, timeout time.Duration) (nothing bool, evidence string) {
	var lacking lack
	var wrong bad
	var errno syscall.Errno
	switch {
	case errors.As(err, &lacking):
		return true, "this node cannot probe: " + string(lacking)
	case errors.As(err, &wrong):
		return false, string(wrong)
	case errors.Is(err, context.Canceled):
		return true, "the probe was given up"
	case timedOut(err):
		evidence = fmt.Sprintf("no answer within %v", timeout)
		if at := (*stageError)(nil); errors.As(err, &at) {
			evidence = at.stage + ", but " + evidence
		}
		return false, evidence
	case errors.As(err, &errno):
		cure, ours := local[errno]
		if !ours {
			return false, errnoWords(errno)
		}
		evidence = "this node cannot probe: " + errno.Error()
		if cure != "" {
			evidence += " (" + cure + ")"
		}
		return true, evidence
	case ended(err):
		return false, "connection closed before the answer was complete"
	}
	if words := tlsWords(err, time.Now()); words != "" {
		return false, words
	}
	return false, err.Error()
}

func errnoWords(errno syscall.Errno) string {
	switch errno {
	case syscall.ECONNREFUSED:
		return "connection refused"
	case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED:
		return "connection reset by the backend"
	case syscall.EHOSTUNREACH:
		return "no route to host"
	case syscall.ENETUNREACH:
		return "network unreachable"
	case syscall.EPROTO, syscall.ENOPROTOOPT:
		return "protocol unreachable"
	}
	return errno.Error()
}

// tlsWords says what is wrong with a certificate or a handshake, or nothing if that is not it.
func tlsWords(err error, now time.Time) string {
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	var verification *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	const day = "2006-01-02"
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(invalid.Cert.NotBefore):
		return "certificate is not valid before " + invalid.Cert.NotBefore.UTC().Format(day)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "certificate expired " + invalid.Cert.NotAfter.UTC().Format(day)
	case errors.As(err, &name):
		return "certificate is for " + certificateNames(name.Certificate) + ", not " + name.Host
	case errors.As(err, &authority) && authority.Cert != nil && authority.Cert.Issuer.String() == authority.Cert.Subject.String():
		return "certificate is self-signed, by no authority that is known (tls.ca_file)"
	case errors.As(err, &authority) && authority.Cert != nil:
		return fmt.Sprintf("certificate is signed by an authority that is not known (tls.ca_file): %s", authority.Cert.Issuer)
	case errors.As(err, &verification):
		return "certificate is not valid: " + strings.TrimPrefix(verification.Err.Error(), "x509: ")
	case errors.As(err, &record):
		return "the answer is not TLS"
	case errors.As(err, &op) && op.Op == "remote error": // an alert, whose type crypto/tls keeps to itself
		return "the backend refuses TLS: " + strings.TrimPrefix(op.Err.Error(), "tls: ")
	case strings.HasPrefix(err.Error(), "tls: "):
		return "TLS fails: " + strings.TrimPrefix(err.Error(), "tls: ")
	}
	return ""
}

// certificateNames is who a certificate is for, in a few words.
func certificateNames(c *x509.Certificate) string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	const most = 3
	switch {
	case len(names) == 0:
		return "no host at all"
	case len(names) > most:
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
