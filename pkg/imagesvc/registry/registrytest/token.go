package registrytest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TokenServer gives out signed tokens that docker-registry accepts (distribution, "Token Authentication Specification"),
// for GET with basic credentials and for POST with a refresh token or a password (OAuth2).
type TokenServer struct {
	URL                          string
	User, Password, RefreshToken string
	// Issued is how many tokens were given out to clients.
	Issued atomic.Int64
	// Grants counts those of them that were asked for by OAuth2.
	Grants atomic.Int64
	// OnlyOAuth2 refuses GET. It must be set before the first request.
	OnlyOAuth2 bool
	// Public has the server give tokens to who does not say who they are, too. It must be set before the first request.
	Public bool

	cert string
	der  []byte
	key  *ecdsa.PrivateKey
}

// NewTokenServer starts one until the test ends.
func NewTokenServer(t testing.TB, user, password, refreshToken string) *TokenServer {
	t.Helper()
	cert, keyFile := newCert(t, t.TempDir())
	s := &TokenServer{User: user, Password: password, RefreshToken: refreshToken, cert: cert}
	var err error
	if s.key, err = x509.ParseECPrivateKey(readPEM(t, keyFile)); err != nil {
		t.Fatal(err)
	}
	s.der = readPEM(t, cert)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL + "/token"
	return s
}

func readPEM(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s is not PEM", file)
	}
	return block.Bytes
}

// ServeHTTP gives a token for the scope asked for, to who says who they are.
func (s *TokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && s.OnlyOAuth2 {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if !s.knows(r) {
		Fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	s.Issued.Add(1)
	scopes := r.Form["scope"]
	if r.Method == http.MethodPost {
		s.Grants.Add(1)
		scopes = strings.Fields(r.FormValue("scope"))
	}
	token := s.Token(scopes...)
	_ = json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
}

func (s *TokenServer) knows(r *http.Request) bool {
	if r.ParseForm() != nil {
		return false
	}
	if r.Method != http.MethodPost {
		user, password, said := r.BasicAuth()
		return user == s.User && password == s.Password || s.Public && !said
	}
	switch r.PostFormValue("grant_type") {
	case "refresh_token":
		return s.RefreshToken != "" && r.PostFormValue("refresh_token") == s.RefreshToken
	case "password":
		return r.PostFormValue("username") == s.User && r.PostFormValue("password") == s.Password
	}
	return false
}

// Token signs a token for scopes such as "repository:library/busybox:pull" (a JSON Web Token, RFC 7519, ES256).
func (s *TokenServer) Token(scopes ...string) string {
	access := []map[string]any{}
	for _, scope := range scopes {
		if parts := strings.Split(scope, ":"); len(parts) == 3 {
			access = append(access, map[string]any{"type": parts[0], "name": parts[1], "actions": strings.Split(parts[2], ",")})
		}
	}
	now := time.Now().Unix()
	signed := encode(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.der)}}) + "." +
		encode(map[string]any{"iss": "test", "sub": s.User, "aud": "test", "exp": now + 300, "nbf": now - 60, "iat": now, "access": access})
	hash := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, hash[:])
	if err != nil {
		panic(err) // the system has no random numbers
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encode(v any) string { return base64.RawURLEncoding.EncodeToString(mustJSON(v)) }

// pusher is a transport that may do everything.
func (s *TokenServer) pusher() http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
		repo, _, _ = strings.Cut(repo, "/manifests/")
		r.Header.Set("Authorization", "Bearer "+s.Token("repository:"+repo+":pull,push"))
		return http.DefaultTransport.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
