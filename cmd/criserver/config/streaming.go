package config

import "criserver/pkg/cri/streaming"

func (v *validator) streaming(s Streaming) {
	v.check(s.Address != "", "streaming.address", "it is empty; \"0.0.0.0\" or \"::\" is any address")
	v.check(s.Port >= 0 && s.Port <= 65535, "streaming.port", "%d is not between 0 and 65535", s.Port)
	v.check(s.IdleTimeout > 0, "streaming.idle_timeout", "it must be positive")
	v.check(s.CreationTimeout > 0, "streaming.creation_timeout", "it must be positive")
	for key, path := range map[string]string{"certificate": s.TLS.Certificate, "key": s.TLS.Key, "client_ca": s.TLS.ClientCA} {
		if path != "" {
			v.absolute("streaming.tls."+key, path)
		}
	}
	if err := s.TLS.Settings().Check(); err != nil {
		v.check(false, "streaming.tls", "%v", err)
	}
}

// Settings is the form in which package streaming takes it.
func (t StreamingTLS) Settings() streaming.TLS {
	return streaming.TLS{
		Certificate: t.Certificate, Key: t.Key, Generate: t.Generate, ClientCA: t.ClientCA, MinVersion: t.MinVersion, Ciphers: t.Ciphers,
	}
}
