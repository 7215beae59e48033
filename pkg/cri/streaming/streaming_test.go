package streaming

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	utilexec "k8s.io/utils/exec"
)

func TestTokensAreGoodOnceAndForAMinute(t *testing.T) {
	var ts tokens
	op := Operation{Attach: &Attach{Container: "c"}}
	now := time.Now()
	issue := func(at time.Time) string {
		token, err := ts.issue(op, at)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	first, second := issue(now), issue(now)
	if first == second || len(first) < 20 {
		t.Errorf("tokens %q and %q", first, second)
	}
	if got, ok := ts.take(first, now); !ok || got.Attach.Container != "c" {
		t.Errorf("first use: %v, %v", got, ok)
	}
	for name, token := range map[string]string{"used": first, "unknown": "x", "empty": ""} {
		if _, ok := ts.take(token, now); ok {
			t.Errorf("%s: taken", name)
		}
	}
	if n := ts.younger(time.Second, now.Add(2*time.Second)); n != 0 {
		t.Errorf("%d young tokens", n)
	}
	if n := ts.younger(tokenLife, now.Add(2*time.Second)); n != 1 {
		t.Errorf("%d tokens", n)
	}
	if _, ok := ts.take(second, now.Add(tokenLife+time.Second)); ok {
		t.Error("an old token is taken")
	}
}

func TestTokensAreBounded(t *testing.T) {
	var ts tokens
	now := time.Now()
	for i := range maxTokens {
		if _, err := ts.issue(Operation{}, now); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if _, err := ts.issue(Operation{}, now); !errors.Is(err, ErrBusy) {
		t.Errorf("err = %v", err)
	}
	if _, err := ts.issue(Operation{}, now.Add(tokenLife+time.Second)); err != nil {
		t.Errorf("when all are old: %v", err)
	}
}

func TestStatus(t *testing.T) {
	for want, err := range map[string]error{
		`{"status":"Success"}`: nil,
		`{"status":"Failure","message":"boom","reason":"InternalError","code":500}`:                                                errors.New("boom"),
		`{"status":"Failure","message":"x","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"9"}]}}`: utilexec.CodeExitError{Code: 9, Err: errors.New("x")},
	} {
		got, jsonErr := json.Marshal(statusOf(err))
		if jsonErr != nil || string(got) != want {
			t.Errorf("%v: %s, %v", err, got, jsonErr)
		}
	}
}

func TestTLSCheck(t *testing.T) {
	for i, test := range []struct {
		tls TLS
		ok  bool
	}{
		{TLS{}, true},
		{TLS{Generate: true, MinVersion: "1.3"}, true},
		{TLS{Certificate: "/a", Key: "/b", ClientCA: "/c", Ciphers: []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}}, true},
		{TLS{Certificate: "/a"}, false},
		{TLS{Generate: true, Certificate: "/a", Key: "/b"}, false},
		{TLS{ClientCA: "/c"}, false},
		{TLS{Generate: true, MinVersion: "1.1"}, false},
		{TLS{Generate: true, Ciphers: []string{"TLS_RSA_WITH_RC4_128_SHA"}}, false},
	} {
		if err := test.tls.Check(); (err == nil) != test.ok {
			t.Errorf("%d: %+v: %v", i, test.tls, err)
		}
	}
	config, err := TLS{Generate: true}.config("node.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := config.Certificates[0].Leaf.VerifyHostname("node.test"); err != nil {
		t.Error(err)
	}
	if err := config.Certificates[0].Leaf.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
}

func TestOperationPath(t *testing.T) {
	for want, op := range map[string]Operation{
		pathAttach: {Attach: &Attach{}}, pathPortForward: {PortForward: &PortForward{}}, "": {Exec: &Exec{}},
	} {
		if got := op.path(); got != want {
			t.Errorf("%s: %q", fmt.Sprint(op), got)
		}
	}
}
